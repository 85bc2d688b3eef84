"""The server's side of the connection, against a shim that says what the test wants."""

from __future__ import annotations

import asyncio
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from jobworker.errors import InvalidArgument, JobNotFound, ResourceExhausted, ShimUnavailable
from jobworker.shim import Client, Launch, listener, wire
from jobworker.shim.channel import Channel
from jobworker.shim.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jobworker.shim.channel import Received

LAUNCH = Launch(
    job_id="x",
    executables=["/bin/true"],
    argv=["true"],
    env={},
    working_directory="/",
    cgroup_path="/x",
)
RECORD = {
    "version": wire.VERSION,
    "job_id": "x",
    "boot_id": "b",
    "pid": 7,
    "exit_code": 0,
    "started_at": 1,
    "ended_at": 2,
    "runtime": 1,
    "output_size": 3,
}


async def readable(file: Channel | Listener) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(file.fileno(), ready.set)
    await ready.wait()
    loop.remove_reader(file.fileno())


class FakeShim:
    """Listens where a shim does, and answers by hand."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.hello: dict[str, Any] = {"version": wire.VERSION, "pid": 1, "jobs": ["x"]}
        self._directory = os.open(run_dir, os.O_RDONLY)
        held = listener.lock(self._directory)
        assert held is not None
        self._held = held
        self._listener = Listener(self._directory, held)
        self._channel: Channel | None = None
        self.ended: list[str] = []
        self.disconnected = 0

    async def connect(self) -> Client:
        connecting = asyncio.create_task(
            Client.connect(self.run_dir, lambda r: self.ended.append(r.job_id), self._on_disconnect)
        )
        await readable(self._listener)
        sock = self._listener.accept()
        assert sock is not None
        self._channel = Channel(sock)
        request = await self.request()
        self.send({"id": request.message["id"], "ok": self.hello})
        return await connecting

    def _on_disconnect(self) -> None:
        self.disconnected += 1

    async def request(self) -> Received:
        assert self._channel is not None
        while (received := self._channel.next()) is None:
            await readable(self._channel)
            self._channel.read()
        return received

    def send(self, message: dict[str, Any], *fds: int) -> None:
        assert self._channel is not None
        self._channel.send(message, fds)

    def hang_up(self) -> None:
        assert self._channel is not None
        self._channel.close()

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._listener.retire()
        os.close(self._held)
        os.close(self._directory)


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[FakeShim]:
    fake = FakeShim(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
async def client(shim: FakeShim) -> AsyncIterator[Client]:
    client = await shim.connect()
    yield client
    await client.close()


def free_descriptor() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


async def test_live_jobs_are_known_from_the_start(client: Client) -> None:
    assert client.jobs == {"x"}


async def test_ends_that_were_not_written_are_told_before_connect_returns(shim: FakeShim) -> None:
    shim.hello["ended"] = [RECORD]
    client = await shim.connect()
    assert shim.ended == ["x"]
    await client.close()


async def test_shim_of_another_version_is_refused_with_the_remedy(shim: FakeShim) -> None:
    shim.hello["version"] = wire.VERSION + 1
    with pytest.raises(ShimUnavailable, match="SIGTERM"):
        await shim.connect()
    assert shim.disconnected == 0


async def test_replies_find_their_calls_in_any_order(shim: FakeShim, client: Client) -> None:
    calls = [asyncio.create_task(client.stop(job_id)) for job_id in ("a", "b")]
    requests = [await shim.request() for _ in calls]
    assert [each.message["args"]["job_id"] for each in requests] == ["a", "b"]
    shim.send({"id": requests[1].message["id"], "error": {"kind": "unknown_job"}})
    shim.send({"id": requests[0].message["id"], "ok": {}})
    await calls[0]
    with pytest.raises(JobNotFound):
        await calls[1]


async def test_stop_says_what_it_was_told(shim: FakeShim, client: Client) -> None:
    call = asyncio.create_task(client.stop("x", signal=2, grace=1.5))
    request = await shim.request()
    assert request.message["args"] == {"job_id": "x", "signal": 2, "grace": 1.5}
    shim.send({"id": request.message["id"], "ok": {}})
    await call


async def test_launch_passes_its_descriptors_and_keeps_them(shim: FakeShim, client: Client) -> None:
    fds = dict.fromkeys(("stdin", "output", "cgroup", "job_dir"), 0)
    call = asyncio.create_task(client.launch(LAUNCH, **fds))
    request = await shim.request()
    assert Launch.from_json(request.message["args"]) == LAUNCH
    assert len(request.fds) == wire.LAUNCH_FDS
    pidfd = os.pidfd_open(os.getpid())
    shim.send(
        {"id": request.message["id"], "ok": {"pid": 7, "start_time": 8, "started_at": 9.5}}, pidfd
    )
    launched = await call
    assert launched[:3] == (7, 8, 9.5)
    for fd in (*request.fds, pidfd, launched.pidfd):
        os.close(fd)
    os.fstat(0)


async def test_end_is_told_once_for_each_event(shim: FakeShim, client: Client) -> None:
    call = asyncio.create_task(client.attach("x"))
    request = await shim.request()
    shim.send({"event": "ended", "record": RECORD})
    shim.send({"id": request.message["id"], "error": {"kind": "unknown_job"}})
    with pytest.raises(JobNotFound):
        await call
    assert shim.ended == ["x"]


async def test_lost_connection_fails_every_call_and_is_told_once(
    shim: FakeShim, client: Client
) -> None:
    calls = [asyncio.create_task(client.stop("x")) for _ in range(3)]
    await shim.request()
    shim.hang_up()
    for call in calls:
        with pytest.raises(ShimUnavailable):
            await call
    with pytest.raises(ShimUnavailable):
        await client.stop("x")
    assert shim.disconnected == 1


async def test_every_call_gets_an_error_of_its_own(shim: FakeShim, client: Client) -> None:
    calls = [asyncio.create_task(client.stop("x")) for _ in range(2)]
    await shim.request()
    shim.hang_up()
    under_way = await asyncio.gather(*calls, return_exceptions=True)
    later = await asyncio.gather(client.stop("x"), client.stop("x"), return_exceptions=True)
    errors = [*under_way, *later]
    assert len({id(error) for error in errors}) == 4
    assert {type(error) for error in errors} == {ShimUnavailable}
    assert len({str(error) for error in errors}) == 1


async def test_client_knows_whether_its_connection_is_lost(shim: FakeShim, client: Client) -> None:
    assert not client.lost
    shim.hang_up()
    with pytest.raises(ShimUnavailable):
        await client.stop("x")
    assert client.lost


async def test_closed_client_is_lost(client: Client) -> None:
    await client.close()
    assert client.lost


@pytest.mark.parametrize(
    ("ok", "count"),
    [
        ({"pid": 7, "start_time": 8, "started_at": 9.5}, 2),
        ({"pid": 7, "start_time": 8}, 1),
        ({"pid": "x", "start_time": 8, "started_at": 9.5}, 1),
        (None, 1),
    ],
)
async def test_process_that_is_not_understood_leaves_no_descriptor(
    shim: FakeShim, client: Client, ok: object, count: int
) -> None:
    call = asyncio.create_task(client.attach("x"))
    request = await shim.request()
    before = free_descriptor()
    shim.send({"id": request.message["id"], "ok": ok}, *[0] * count)
    with pytest.raises(ShimUnavailable, match="cannot understand"):
        await call
    assert free_descriptor() == before


async def test_closing_is_not_a_lost_connection(shim: FakeShim, client: Client) -> None:
    call = asyncio.create_task(client.stop("x"))
    await shim.request()
    await client.close()
    with pytest.raises(ShimUnavailable, match="has been closed"):
        await call
    assert shim.disconnected == 0


@pytest.mark.parametrize(
    "message",
    [{"event": "ended", "record": {}}, {"event": "ended"}, {"id": 1, "fds": 3}],
)
async def test_nonsense_from_the_shim_ends_the_connection(
    shim: FakeShim, client: Client, message: dict[str, Any]
) -> None:
    call = asyncio.create_task(client.stop("x"))
    await shim.request()
    shim.send(message)
    with pytest.raises(ShimUnavailable):
        await call
    assert shim.disconnected == 1


async def test_reply_to_a_cancelled_launch_leaves_no_descriptor(
    shim: FakeShim, client: Client
) -> None:
    fds = dict.fromkeys(("stdin", "output", "cgroup", "job_dir"), 0)
    call = asyncio.create_task(client.launch(LAUNCH, **fds))
    request = await shim.request()
    for fd in request.fds:
        os.close(fd)
    before = free_descriptor()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    shim.send(
        {"id": request.message["id"], "ok": {"pid": 7, "start_time": 8, "started_at": 9.5}}, 0
    )
    stopping = asyncio.create_task(client.stop("x"))
    shim.send({"id": (await shim.request()).message["id"], "ok": {}})
    await stopping
    assert free_descriptor() == before


async def test_launch_cancelled_just_as_the_reply_comes_leaves_no_descriptor(
    shim: FakeShim, client: Client
) -> None:
    fds = dict.fromkeys(("stdin", "output", "cgroup", "job_dir"), 0)
    call = asyncio.create_task(client.launch(LAUNCH, **fds))
    request = await shim.request()
    for fd in request.fds:
        os.close(fd)
    before = free_descriptor()
    shim.send(
        {"id": request.message["id"], "ok": {"pid": 7, "start_time": 8, "started_at": 9.5}}, 0
    )
    client._on_readable()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert free_descriptor() == before


async def test_launch_whose_process_cannot_be_taken_over_is_undone(
    shim: FakeShim, client: Client
) -> None:
    fds = dict.fromkeys(("stdin", "output", "cgroup", "job_dir"), 0)
    call = asyncio.create_task(client.launch(LAUNCH, **fds))
    request = await shim.request()
    for fd in request.fds:
        os.close(fd)
    shim.send(
        {"id": request.message["id"], "ok": {"pid": 7, "start_time": 8, "started_at": 9.5}}, 0
    )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free_descriptor(), limits[1]))
    try:
        client._on_readable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    stop = await shim.request()
    assert stop.message["op"] == "stop"
    assert stop.message["args"] == {"job_id": "x", "signal": 9, "grace": 0}
    shim.send({"id": stop.message["id"], "ok": {}})
    with pytest.raises(ResourceExhausted):
        await call


async def test_launch_that_cannot_be_right_is_not_sent(client: Client) -> None:
    fds = dict.fromkeys(("stdin", "output", "cgroup", "job_dir"), 0)
    launch = Launch(**{**LAUNCH.to_json(), "argv": ["a\0b"]})
    with pytest.raises(InvalidArgument, match="NUL"):
        await client.launch(launch, **fds)
    large = Launch(**{**LAUNCH.to_json(), "argv": ["x" * wire.MAX_MESSAGE]})
    with pytest.raises(InvalidArgument, match="bytes"):
        await client.launch(large, **fds)
    assert not client._calls


async def test_callback_that_fails_is_reported_and_the_connection_stays(
    shim: FakeShim, client: Client
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    client._on_ended = lambda _: 1 / 0  # type: ignore[assignment]
    call = asyncio.create_task(client.stop("x"))
    request = await shim.request()
    shim.send({"event": "ended", "record": RECORD})
    shim.send({"id": request.message["id"], "ok": {}})
    await call
    assert isinstance(reported[0]["exception"], ZeroDivisionError)
