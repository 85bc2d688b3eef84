"""A real server on loopback, with mutual TLS; only the servicer behind the guard is the test's."""

import asyncio
import json
import re
from contextlib import AsyncExitStack, aclosing
from types import SimpleNamespace

import grpc
import pytest

from jobworker.auth import certs, tls
from jobworker.auth.audit import Audit
from jobworker.auth.policy import Policy
from jobworker.errors import JobNotFound
from jobworker.rpc import keepalive
from jobworker.rpc.client import Client
from jobworker.rpc.errors import error_name
from jobworker.rpc.guard import Guard, caller
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.v1 import jobworker_pb2_grpc as pb_grpc
from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE, until


class Servicer(pb_grpc.JobWorkerServiceServicer):
    def __init__(self):
        self.calls = []
        self.stopping = asyncio.Event()
        self.output_ended = asyncio.Event()
        self.waiting = asyncio.Event()
        self.wait_ended = asyncio.Event()

    async def Start(self, request, context):
        self.calls.append(("Start", caller().common_name))
        return pb.StartResponse(job_id="j")

    async def Status(self, request, context):
        self.calls.append(("Status", caller().common_name))
        if request.job_id == "bug":
            raise RuntimeError("a secret of the server")
        raise JobNotFound(request.job_id)

    async def Stop(self, request, context):
        self.stopping.set()
        await asyncio.Event().wait()

    async def Wait(self, request, context):
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.wait_ended.set()

    async def Output(self, request, context):
        try:
            while request.job_id == "endless":
                yield pb.OutputResponse(output=bytes(1 << 20))
            yield pb.OutputResponse(output=b"first")
            await asyncio.Event().wait()
        finally:
            self.output_ended.set()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certs")
    certs.init(directory)
    certs.issue_client(directory, "stranger")
    return directory


@pytest.fixture
async def server(directory, tmp_path, request):
    audit = Audit.open(tmp_path / "audit.log")
    guard = Guard(Policy(), audit, max_streams_per_user=3)
    servicer = Servicer()
    options = keepalive.server_options(time=1, timeout=getattr(request, "param", 5))
    server = grpc.aio.server(interceptors=[guard], options=options)
    pb_grpc.add_JobWorkerServiceServicer_to_server(servicer, server)
    credentials = tls.server_credentials(
        directory / "jobworker.crt", directory / "jobworker.key", directory / "ca.crt"
    )
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()

    def client(user, address=f"localhost:{port}"):
        return Client(
            address,
            cert=directory / f"{user}.crt",
            key=directory / f"{user}.key",
            ca=directory / "ca.crt",
        )

    def lines():
        return [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]

    yield SimpleNamespace(
        address=f"localhost:{port}", client=client, guard=guard, servicer=servicer, audit=lines
    )
    await server.stop(None)
    audit.close()


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def drain(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_call_with_the_role_gets_through_with_the_callers_name(server):
    async with server.client("user_alpha") as alpha:
        assert (await alpha.start(pb.StartRequest())).job_id == "j"
    assert server.servicer.calls == [("Start", "user_alpha")]


async def test_a_call_without_the_role_never_reaches_the_servicer(server):
    async with server.client("user_bravo") as bravo:
        code, details = await code_of(bravo.start(pb.StartRequest()))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "user_bravo" in details
    assert "mutate" in details
    assert server.servicer.calls == []


async def test_a_user_that_nobody_knows_may_not_even_look(server):
    async with server.client("stranger") as stranger:
        code, details = await code_of(stranger.status("j"))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "stranger" in details
    assert server.servicer.calls == []


async def test_every_decision_is_one_line_of_the_audit_log(server):
    async with server.client("user_bravo") as bravo:
        await code_of(bravo.start(pb.StartRequest()))
        await code_of(bravo.status("j"))
    denied, allowed = server.audit()
    assert (denied["event"], denied["user"]) == ("denied", "user_bravo")
    assert denied["method"] == "/jobworker.v1.JobWorkerService/Start"
    assert "mutate" in denied["why"]
    assert (allowed["event"], allowed["method"]) == (
        "allowed",
        "/jobworker.v1.JobWorkerService/Status",
    )
    assert re.fullmatch(r"(\[::1\]|127\.0\.0\.1):\d+", allowed["peer"])
    assert list(allowed)[:2] == ["time", "event"]


async def test_a_domain_error_becomes_its_status(server):
    async with server.client("user_alpha") as alpha:
        code, details = await code_of(alpha.status("j"))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "no job has the id j")


async def test_a_domain_error_is_named_for_programs(server):
    async with server.client("user_alpha") as alpha, server.client("user_bravo") as bravo:
        for call, name in (
            (alpha.status("j"), "JobNotFound"),
            (bravo.start(pb.StartRequest()), "PermissionDenied"),
            (alpha.status("bug"), ""),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert error_name(caught.value) == name


async def test_a_bug_does_not_tell_the_client_what_the_server_knows(server):
    async with server.client("user_alpha") as alpha:
        code, details = await code_of(alpha.status("bug"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


async def raw_call(client, method, body):
    call = client._channel.unary_unary(f"/jobworker.v1.JobWorkerService/{method}")
    return await code_of(call(body))


async def test_what_is_no_message_is_judged_like_any_request(server):
    async with server.client("user_alpha") as alpha, server.client("stranger") as stranger:
        code, details = await raw_call(alpha, "Start", b"\xff\xff\xff")
        assert (code, details[:7]) == (grpc.StatusCode.INVALID_ARGUMENT, "request")
        code, _ = await raw_call(stranger, "Start", b"\xff\xff\xff")
        assert code is grpc.StatusCode.PERMISSION_DENIED
    assert [line["event"] for line in server.audit()] == ["allowed", "denied"]


async def test_a_long_error_arrives_shortened_with_its_status(server):
    async with server.client("user_alpha") as alpha:
        for job_id in ("x" * 50_000, "\N{GRINNING FACE}" * 5_000):
            code, details = await code_of(alpha.status(job_id))
            assert code is grpc.StatusCode.NOT_FOUND
            assert 100 < len(details) < 7000


async def test_a_call_that_cannot_be_recorded_is_refused(server, tmp_path):
    (tmp_path / "audit.log").unlink()
    (tmp_path / "audit.log").mkdir()
    async with server.client("user_alpha") as alpha:
        code, details = await code_of(alpha.start(pb.StartRequest()))
    assert (code, "audit log" in details) == (grpc.StatusCode.UNAVAILABLE, True)
    assert server.servicer.calls == []


async def test_closing_ends_streams_with_unavailable(server):
    async with server.client("user_alpha") as alpha:
        stream = alpha.output("j", tail=True, give_up_after=0)
        assert (await anext(stream)).output == b"first"
        await server.guard.close(PATIENCE)
        await asyncio.wait_for(server.servicer.output_ended.wait(), PATIENCE)
        with pytest.raises(Exception, match="shutting down"):
            await anext(stream)


@pytest.mark.parametrize("messages", [1, 2, 5, 20])
async def test_closing_ends_a_stream_in_the_middle_of_its_messages(server, messages):
    async with server.client("user_alpha") as alpha:
        call = alpha._stub.Output(pb.OutputRequest(job_id="endless"))
        for _ in range(messages):
            await call.read()
        closing = asyncio.create_task(server.guard.close(PATIENCE))
        code, _ = await code_of(drain(call))
        await closing
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_does_not_read_does_not_hold_up_closing(server):
    async with server.client("user_alpha") as alpha:
        call = alpha._stub.Output(pb.OutputRequest(job_id="endless"))
        await call.read()
        await server.guard.close(0.2)
        await asyncio.wait_for(server.servicer.output_ended.wait(), PATIENCE)


async def test_closing_ends_calls_that_wait_for_longer_than_the_patience(server):
    async with server.client("user_alpha") as alpha:
        stop = asyncio.create_task(code_of(alpha.stop("j")))
        await asyncio.wait_for(server.servicer.stopping.wait(), PATIENCE)
        await server.guard.close(0.01)
        code, details = await stop
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "jobs go on" in details


async def test_closing_ends_who_waits_for_a_job_at_once(server):
    async with server.client("user_alpha") as alpha:
        wait = asyncio.create_task(alpha.wait("j", give_up_after=0))
        await asyncio.wait_for(server.servicer.waiting.wait(), PATIENCE)
        await asyncio.wait_for(server.guard.close(1000), PATIENCE)
        with pytest.raises(Exception, match="shutting down"):
            await wait


async def test_a_wait_that_the_client_leaves_is_ended(server):
    async with server.client("user_alpha") as alpha:
        wait = asyncio.create_task(alpha.wait("j"))
        await asyncio.wait_for(server.servicer.waiting.wait(), PATIENCE)
        wait.cancel()
        await asyncio.wait_for(server.servicer.wait_ended.wait(), PATIENCE)
        await until(lambda: not (server.guard._streams or server.guard._calls))


async def test_a_call_after_closing_is_refused(server):
    await server.guard.close(0)
    async with server.client("user_alpha") as alpha:
        code, _ = await code_of(alpha.start(pb.StartRequest()))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert server.servicer.calls == []


async def test_who_calls_again_and_again_does_not_hold_up_the_end(server):
    async with server.client("user_alpha") as alpha:

        async def call_for_ever():
            while True:
                await code_of(alpha.status("j"))

        callers = [asyncio.create_task(call_for_ever()) for _ in range(5)]
        await until(lambda: len(server.servicer.calls) > 10)
        await asyncio.wait_for(server.guard.turn_away(0.3), PATIENCE)
        for caller_ in callers:
            caller_.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        code, details = await code_of(alpha.status("j"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "jobs go on" in details


async def test_a_stream_that_the_client_leaves_is_closed(server):
    async with server.client("user_alpha") as alpha:
        stream = alpha.output("j", tail=True)
        await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(server.servicer.output_ended.wait(), PATIENCE)


@pytest.mark.parametrize("server", [0.2], ids=["who is given little time"], indirect=True)
async def test_a_client_that_falls_silent_is_dropped(server):
    async with (
        Proxy(server.address) as proxy,
        server.client("user_alpha", proxy.address) as alpha,
        aclosing(alpha.output("j", tail=True)) as stream,
    ):
        await anext(stream)
        proxy.fall_silent()
        await asyncio.wait_for(server.servicer.output_ended.wait(), PATIENCE)


async def test_a_user_may_have_so_many_streams_and_others_have_theirs(server):
    async with server.client("user_alpha") as alpha, server.client("user_bravo") as bravo:
        async with AsyncExitStack() as stack:
            for client in (alpha, alpha, alpha, bravo):
                stream = await stack.enter_async_context(aclosing(client.output("j", tail=True)))
                await anext(stream)
            code, details = await code_of(anext(alpha.output("j", tail=True)))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "user_alpha has 3 open" in details
            assert "--max-streams-per-user" in details
            assert (await alpha.start(pb.StartRequest())).job_id == "j", (
                "other calls are no streams"
            )

        async def gets_one():
            async with aclosing(alpha.output("j", tail=True)) as stream:
                try:
                    return (await anext(stream)).output == b"first"
                except grpc.aio.AioRpcError:
                    return False

        await until(gets_one, "streams that were left gave their places back")
