"""The asyncio client against a stand-in for the service, over real mutual TLS."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest

from jobworker.errors import ConfigError
from jobworker.rpc.channel import WIDE_STREAMS
from jobworker.rpc.client import Client
from jobworker.rpc.resume import OutputInterrupted, StreamInterrupted
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.watch import WatchInterrupted
from jobworker.testing.servicer import RUNNING, Refusal, ScriptedService
from tests.support.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUT = bytes(range(256)) * 4096  # 1 MiB, no two positions of a chunk alike


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(chunk=10_000)


@pytest.fixture
def connect(pki) -> Callable[..., Client]:
    def connect(url: str, user: str = "user_alpha") -> Client:
        files = {
            kind: pki.directory / f"{user}.{end}" for kind, end in (("cert", "crt"), ("key", "key"))
        }
        return Client(url, **files, ca=pki.ca)

    return connect


async def read(client: Client, job_id: str, **options) -> tuple[bytes, pb.OutputResponse]:
    output, last = b"", None
    async for last in client.output(job_id, **options):
        assert last.offset == options.get("offset", 0) + len(output)
        output += last.output
    assert last is not None
    return output, last


async def test_start_stop_and_status_carry_requests_and_answers(serve, service, connect):
    listener = await serve(service)
    async with connect(listener.url) as client:
        started = await client.start(pb.StartRequest(command=pb.Command(name="sleep", args=["9"])))
        assert (await client.status(started.job_id)).status.status == pb.STATUS_RUNNING
        await client.stop(started.job_id, grace=0)
        assert service.requests[-1].HasField("grace")
        stopped = await client.status(started.job_id)
    assert stopped.status.status == pb.STATUS_STOPPED
    assert stopped.job.command.args == ["9"]


async def test_a_running_job_is_changed(serve, service, connect):
    listener = await serve(service)
    job_id = service.add(status=RUNNING).job.id
    async with connect(listener.url) as client:
        changed = await client.update_limits(job_id, pb.Limits(pids_max=7))
        assert changed.limits.pids_max == 7
        await client.pause(job_id)
        assert (await client.status(job_id)).job.paused
        await client.resume(job_id)
        assert not (await client.status(job_id)).job.paused


async def test_a_finished_job_is_removed(serve, service, connect):
    listener = await serve(service)
    job_id = service.add().job.id
    async with connect(listener.url) as client:
        await client.remove(job_id)
        assert service.requests[-1] == pb.RemoveRequest(job_id=job_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.status(job_id)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_stop_and_signal_carry_the_signal(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    async with connect(listener.url) as client:
        await client.signal(job.job.id, 10)
        assert service.requests[-1] == pb.SignalRequest(job_id=job.job.id, signal=10)
        await client.signal(job.job.id, 12, all_processes=True)
        assert service.requests[-1] == pb.SignalRequest(job_id=job.job.id, signal=12, all=True)
        await client.stop(job.job.id, signal=2)
        assert service.requests[-1] == pb.StopRequest(job_id=job.job.id, signal=2)


async def test_a_wait_ends_with_the_job(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    async with connect(listener.url) as client:
        waits = [asyncio.create_task(client.wait(job.job.id)) for _ in range(3)]
        await until_asked(service, 3)
        assert not service.requests[0].HasField("timeout")
        await job.end()
        for wait in waits:
            assert await wait == job.job.status


async def test_a_wait_ends_when_its_time_has_passed(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    async with connect(listener.url) as client:
        for seconds in (0, 0.05):
            assert await client.wait(job.job.id, seconds) == RUNNING
            assert service.requests[-1].timeout.ToMilliseconds() == seconds * 1000


async def test_a_wait_goes_on_after_the_restart_of_the_server(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    async with connect(listener.url) as client:
        wait = asyncio.create_task(client.wait(job.job.id, 600))
        await until_asked(service, 1)
        await listener.stop()
        await serve(service, port=listener.port)
        await until_asked(service, 2)
        first, second = (request.timeout.ToNanoseconds() for request in service.requests)
        assert second < first, "the time goes on meanwhile"
        await job.end()
        assert await wait == job.job.status


class Patient(ScriptedService):
    """Answers a Wait when the job has ended, whatever time has passed."""

    async def Wait(self, request: pb.WaitRequest, context: Any) -> pb.WaitResponse:
        request.ClearField("timeout")
        return await super().Wait(request, context)


async def test_a_wait_ends_with_an_error_when_the_server_stays_away(serve, connect, monkeypatch):
    monkeypatch.setattr("jobworker.rpc.resume.NOTICE_AFTER", 0.0)
    service = Patient()
    listener = await serve(service)
    job_id = service.add(status=RUNNING).job.id
    said = []
    async with connect(listener.url) as client:
        patient = {"give_up_after": 0.3, "on_interrupted": said.append}
        waits = [
            asyncio.create_task(client.wait(job_id, **patient)),
            asyncio.create_task(client.wait(job_id, 0.5, give_up_after=10**6)),
        ]
        await until_asked(service, 2)
        await listener.stop()
        for wait in waits:
            with pytest.raises(StreamInterrupted):
                await asyncio.wait_for(wait, PATIENCE)
    assert len(said) == 1


async def test_a_wait_that_is_refused_is_not_asked_again(serve, service, connect):
    listener = await serve(service)
    async with connect(listener.url) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.wait("nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert len(service.requests) == 1


async def until_asked(service: ScriptedService, times: int) -> None:
    await until(lambda: len(service.requests) >= times)


async def test_samples_arrive_in_order_and_the_last_is_the_end(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    job.samples = [pb.StatsResponse(pids_current=count) for count in (1, 2)]
    async with connect(listener.url) as client:
        stream = client.stats(job.job.id, follow=True, interval=5)
        assert [(await anext(stream)).pids_current for _ in range(2)] == [1, 2]
        await job.end()
        assert (await anext(stream)).status == job.job.status
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert service.requests[-1].interval.ToSeconds() == 5


async def test_samples_go_on_after_the_restart_of_the_server(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    job.samples = [pb.StatsResponse(pids_current=1)]
    async with connect(listener.url) as client:
        stream = client.stats(job.job.id, follow=True)
        assert (await anext(stream)).pids_current == 1
        await listener.stop()
        job.samples = [pb.StatsResponse(pids_current=2)]
        await serve(service, port=listener.port)
        assert (await anext(stream)).pids_current == 2
        await job.end()
        assert [each.status async for each in stream] == [job.job.status]


async def test_samples_end_with_an_error_when_the_server_stays_away(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    job.samples = [pb.StatsResponse(pids_current=1)]
    async with connect(listener.url) as client:
        stream = client.stats(job.job.id, follow=True, give_up_after=0.3)
        await anext(stream)
        await listener.stop()
        with pytest.raises(StreamInterrupted):
            await anext(stream)


async def test_one_sample_is_one_unless_more_are_asked_for(serve, service, connect):
    listener = await serve(service)
    job_id = service.add(status=RUNNING).job.id
    async with connect(listener.url) as client:
        assert len([each async for each in client.stats(job_id)]) == 1


async def test_a_refusal_arrives_as_the_status_it_is(serve, service, connect):
    listener = await serve(service)
    async with connect(listener.url) as client:
        with pytest.raises(grpc.aio.AioRpcError, match="no job has the id x") as refusal:
            await client.status("x")
        with pytest.raises(grpc.aio.AioRpcError):
            await read(client, "x")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_output_is_byte_exact_and_closes_with_the_end(serve, service, connect):
    listener = await serve(service)
    job = service.add(OUTPUT)
    async with connect(listener.url) as client:
        output, last = await read(client, job.job.id)
    assert output == OUTPUT
    assert last.end == pb.OutputEnd(status=job.job.status, size=len(OUTPUT))


async def test_output_begins_at_the_offset(serve, service, connect):
    listener = await serve(service)
    job = service.add(OUTPUT)
    async with connect(listener.url) as client:
        output, _ = await read(client, job.job.id, offset=12_345)
    assert output == OUTPUT[12_345:]


async def test_closing_ends_every_connection(serve, service, connect):
    listener = await serve(service)
    async with connect(listener.url) as client, AsyncExitStack() as stack:
        job = service.add(b"something", RUNNING)
        for _ in range(WIDE_STREAMS + 1):
            stream = client.output(job.job.id, tail=True)
            assert await anext(await stack.enter_async_context(aclosing(stream)))
        crowded = client._outputs._narrow
        assert crowded.get_state() is grpc.ChannelConnectivity.READY
    assert crowded.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_stream_waits_for_its_connection_where_the_client_has_reached_the_server(
    serve, service, connect, monkeypatch
):
    # After the server was away, gRPC connects one of the two again before the other.
    listener = await serve(service)
    job = service.add(OUTPUT)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        async with (
            connect(listener.url) as client,
            connect(f"127.0.0.1:{deaf.getsockname()[1]}") as away,
        ):
            monkeypatch.setattr(client._outputs, "_wide", away._channel)
            with pytest.raises(grpc.aio.AioRpcError, match="failed to connect"):
                await read(client, job.job.id)
            await client.status(job.job.id)
            with pytest.raises(OutputInterrupted):
                await read(client, job.job.id, give_up_after=0.1)


async def test_tail_goes_on_until_the_job_has_ended(serve, service, connect):
    listener = await serve(service)
    job = service.add(b"one", RUNNING)
    async with connect(listener.url) as client:
        stream = client.output(job.job.id, tail=True)
        assert (await anext(stream)).output == b"one"
        await job.write(b"two")
        assert (await anext(stream)).output == b"two"
        await job.end()
        assert (await anext(stream)).end.size == 6
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_follower_that_leaves_ends_its_stream_on_the_server(serve, service, connect):
    listener = await serve(service)
    job = service.add(b"one", RUNNING)
    async with connect(listener.url) as client:
        stream = client.output(job.job.id, tail=True)
        await anext(stream)
        assert service.followers == 1
        await stream.aclose()
        async with asyncio.timeout(PATIENCE):
            await service.wait_for_followers(0)


async def test_a_stream_that_the_server_breaks_off_is_taken_up_again(serve, service, connect):
    listener = await serve(service)
    job = service.add(OUTPUT)
    service.refusals["Output"] = [
        Refusal(grpc.StatusCode.UNAVAILABLE, "shutting down", after=n) for n in (3, 1, 7)
    ]
    async with connect(listener.url) as client:
        output, _ = await read(client, job.job.id)
    assert output == OUTPUT
    assert [request.offset for request in service.requests] == [0, 30_000, 40_000, 110_000]


async def test_a_quiet_follower_survives_the_restart_of_the_server(serve, service, connect):
    listener = await serve(service)
    job = service.add(b"", RUNNING)
    async with connect(listener.url) as client:
        following = asyncio.create_task(read(client, job.job.id, tail=True))
        async with asyncio.timeout(PATIENCE):
            await service.wait_for_followers(1)
        await listener.stop()
        await serve(service, port=listener.port)
        await job.write(b"late")
        await job.end()
        assert (await following)[0] == b"late"


@pytest.mark.parametrize("cut", [0, 5_000, 60_000, 300_000, 777_777])
async def test_connections_cut_at_any_byte_lose_and_repeat_nothing(serve, service, connect, cut):
    listener = await serve(service)
    job = service.add(OUTPUT)
    async with (
        Cutter(listener.port, [8_000 + cut, 20_000, 250_000]) as cutter,
        connect(f"localhost:{cutter.port}") as client,
    ):
        output, last = await read(client, job.job.id)
    assert output == OUTPUT
    assert last.end.size == len(OUTPUT)
    assert not cutter.cuts, "every connection was cut that should have been"


async def test_a_server_that_stays_away_is_an_error_that_says_how_far_it_came(
    serve, service, connect
):
    listener = await serve(service)
    job = service.add(b"one", RUNNING)
    async with connect(listener.url) as client:
        stream = client.output(job.job.id, tail=True, give_up_after=0.1)
        await anext(stream)
        await listener.stop()
        with pytest.raises(OutputInterrupted) as interruption:
            await anext(stream)
    assert interruption.value.offset == 3


async def test_a_stream_that_ends_without_an_end_is_never_a_short_output(serve, service, connect):
    listener = await serve(service)
    job = service.add(b"one")

    def without_end(message: pb.OutputResponse) -> pb.OutputResponse:
        message.ClearField("end")
        return message

    service.rewrite = without_end
    async with connect(listener.url) as client:
        with pytest.raises(OutputInterrupted, match="cut off at byte 3: the stream ended early"):
            await read(client, job.job.id, give_up_after=0.1)


async def test_bytes_that_are_left_out_are_shown_as_a_gap(serve, service, connect):
    listener = await serve(service)
    job = service.add(OUTPUT)

    def skip(message: pb.OutputResponse) -> pb.OutputResponse:
        if message.offset == 50_000:
            message.offset += 1000
            message.output = message.output[1000:]
        return message

    service.rewrite = skip
    async with connect(listener.url) as client:
        messages = [message async for message in client.output(job.job.id)]
    assert [(m.offset, m.gap) for m in messages if m.gap] == [(51_000, 1000)]
    assert b"".join(m.output for m in messages) == OUTPUT[:50_000] + OUTPUT[51_000:]


@pytest.mark.parametrize(
    "asked", [{"last_bytes": 150_000}, {"last_lines": OUTPUT[-150_000:].count(b"\n")}]
)
async def test_the_last_of_the_output_is_taken_up_by_its_offset(serve, service, connect, asked):
    listener = await serve(service)
    job = service.add(OUTPUT)
    service.refusals["Output"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "cut", after=4)]
    async with connect(listener.url) as client:
        messages = [message async for message in client.output(job.job.id, **asked)]
    expected = OUTPUT[messages[0].offset :]
    assert 149_000 < len(expected) < 151_000
    assert b"".join(m.output for m in messages) == expected
    again = service.requests[-1]
    assert again.offset == messages[0].offset + 30_000
    assert not again.HasField("last_bytes")
    assert not again.HasField("last_lines")


async def test_bytes_that_a_cap_has_dropped_show_in_the_offsets(serve, service, connect):
    listener = await serve(service)
    job = service.add(OUTPUT)
    job.dropped = 50_000
    async with connect(listener.url) as client:
        messages = [message async for message in client.output(job.job.id)]
    assert messages[0].offset == 50_000
    assert b"".join(message.output for message in messages) == OUTPUT[50_000:]
    assert messages[-1].end.size == len(OUTPUT)


async def test_standard_error_is_read_by_itself_where_it_is_kept_apart(serve, service, connect):
    listener = await serve(service)
    split, together = service.add(b"out"), service.add(b"out")
    split.split(b"err")
    async with connect(listener.url) as client:
        stderr = pb.OUTPUT_STREAM_STDERR
        messages = [message async for message in client.output(split.job.id, stream=stderr)]
        assert b"".join(message.output for message in messages) == b"err"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            [message async for message in client.output(together.job.id, stream=stderr)]
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_server_that_is_not_there_is_an_error_at_once(connect):
    with socket.create_server(("localhost", 0)) as unused:
        port = unused.getsockname()[1]
    async with connect(f"localhost:{port}") as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await read(client, "x", give_up_after=3600)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_malformed_url_and_a_missing_file_are_found_before_anything_is_sent(connect):
    with pytest.raises(ValueError, match="http://x"):
        connect("http://x")
    with pytest.raises(ConfigError, match=r"nobody\.(crt|key)"):
        connect("localhost", user="nobody")


async def test_a_large_request_and_a_large_message_pass(serve, connect):
    service = ScriptedService(chunk=2 * 1024 * 1024)
    listener = await serve(service)
    job = service.add(OUTPUT * 2)
    async with connect(listener.url) as client:
        await client.start(pb.StartRequest(command=pb.Command(name="x"), stdin=bytes(1024 * 1024)))
        output, _ = await read(client, job.job.id)
    assert output == OUTPUT * 2


class Cutter:
    """A relay that cuts its first connections, each after so many bytes from the server."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._server_port = port
        self.cuts = cuts
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "localhost", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        budget = self.cuts.pop(0) if self.cuts else None
        up_reader, up_writer = await asyncio.open_connection("localhost", self._server_port)
        up = asyncio.create_task(self._copy(reader, up_writer, None))
        try:
            await self._copy(up_reader, writer, budget)
        finally:
            up.cancel()
            for end in (writer, up_writer):
                end.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
    ) -> None:
        while data := await reader.read(65_536 if budget is None else min(budget, 65_536)):
            writer.write(data)
            await writer.drain()
            if budget is not None:
                budget -= len(data)
                if budget == 0:
                    return


# Events


async def take_events(stream, count) -> list[tuple[int, str]]:
    async with asyncio.timeout(PATIENCE):
        events = [await anext(stream) for _ in range(count)]
    return [(event.type, event.job_id) for event in events]


async def test_a_watch_goes_on_after_the_restart_of_the_server(serve, service, connect):
    listener = await serve(service)
    job = service.add(status=RUNNING)
    async with connect(listener.url) as client, aclosing(client.watch()) as stream:
        assert await take_events(stream, 1) == [(pb.EVENT_TYPE_UNSPECIFIED, "")]
        service.events.tell(pb.EVENT_TYPE_PAUSED, job.job)
        assert await take_events(stream, 1) == [(pb.EVENT_TYPE_PAUSED, job.job.id)]
        await listener.stop()
        service.events.tell(pb.EVENT_TYPE_RESUMED, job.job)
        await serve(service, port=listener.port)
        await job.end()
        assert await take_events(stream, 2) == [
            (pb.EVENT_TYPE_RESUMED, job.job.id),
            (pb.EVENT_TYPE_ENDED, job.job.id),
        ]


async def test_a_watch_that_breaks_again_and_again_tells_every_event_once(serve, service, connect):
    listener = await serve(service)
    jobs = [service.add(status=RUNNING) for _ in range(20)]
    service.refusals["Watch"] = [
        Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed", after=count) for count in (3, 1, 5, 2)
    ]
    for job in jobs:
        await job.end()
    async with connect(listener.url) as client, aclosing(client.watch("0")) as stream:
        assert await take_events(stream, 20) == [(pb.EVENT_TYPE_ENDED, job.job.id) for job in jobs]
    assert [each.resume_token for each in service.requests] == ["0", "3", "4", "9", "11"]


async def test_a_watch_of_one_job_ends_with_its_removal(serve, service, connect):
    listener = await serve(service)
    job, other = service.add(), service.add()
    service.events.tell(pb.EVENT_TYPE_REMOVED, other.job)
    service.events.tell(pb.EVENT_TYPE_REMOVED, job.job)
    async with connect(listener.url) as client:
        watched = [each.job_id async for each in client.watch("0", job_id=job.job.id)]
    assert watched == [job.job.id]
    assert len(service.requests) == 1


async def test_a_refused_watch_is_an_error_at_once(serve, service, connect):
    listener = await serve(service)
    service.refusals["Watch"] = [Refusal(grpc.StatusCode.OUT_OF_RANGE, "list the jobs")]
    async with connect(listener.url) as client:
        with pytest.raises(grpc.aio.AioRpcError, match="list the jobs"):
            await anext(client.watch("0"))


async def test_a_watch_ends_with_an_error_when_the_server_stays_away(serve, service, connect):
    listener = await serve(service)
    async with connect(listener.url) as client:
        stream = client.watch(give_up_after=0.3)
        await take_events(stream, 1)
        await listener.stop()
        with pytest.raises(WatchInterrupted) as given_up:
            await anext(stream)
    assert given_up.value.resume_token == "0"


async def test_a_watch_that_is_left_is_over_for_the_server_too(serve, service, connect):
    listener = await serve(service)
    async with connect(listener.url) as client:
        async with aclosing(client.watch()) as stream:
            await take_events(stream, 1)
            assert service.events.watchers == 1
        async with asyncio.timeout(PATIENCE):
            await service.events.wait_for_watchers(0)
