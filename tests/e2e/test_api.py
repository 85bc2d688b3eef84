"""The four methods of the wire contract, over mutual TLS, by the real server."""

import asyncio
import uuid

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh


async def read(client, job_id, **how):
    """Return all messages of an Output stream."""
    return [message async for message in client.output(job_id, **how)]


def joined(messages):
    return b"".join(message.output for message in messages)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_start_status_output_stop(server):
    async with server().client() as client:
        started = await client.start(sh("echo hello; sleep 1000"))
        assert str(uuid.UUID(started.job_id)) == started.job_id
        assert started.command == pb.Command(name="sh", args=["-c", "echo hello; sleep 1000"])
        assert started.status.status == pb.STATUS_RUNNING
        assert started.status.exit_code == -1

        running = await client.status(started.job_id)
        assert running.status == running.job.status
        assert running.job.owner == "user_alpha"
        assert running.job.pid > 0

        while not joined(await read(client, started.job_id)):
            pass
        await client.stop(started.job_id)
        stopped = (await client.status(started.job_id)).status
        assert (stopped.status, stopped.reason) == (pb.STATUS_STOPPED, pb.REASON_STOPPED)
        assert (stopped.exit_code, stopped.signal) == (-1, 15)

        *content, end = await read(client, started.job_id, tail=True)
        assert joined(content) == b"hello\n"
        assert end.end == pb.OutputEnd(status=stopped, size=6)


async def test_an_exit_code_arrives(server):
    async with server().client() as client:
        started = await client.start(sh("exit 42"))
        *_, end = await read(client, started.job_id, tail=True)
        assert (end.end.status.status, end.end.status.exit_code) == (pb.STATUS_EXITED, 42)
        assert end.end.status.reason == pb.REASON_EXITED


async def test_output_without_tail_ends_with_what_is_there(server):
    async with server().client() as client:
        started = await client.start(sh("echo first; read -r line < /dev/zero; sleep 1000"))
        while not joined(messages := await read(client, started.job_id)):
            pass
        assert joined(messages) == b"first\n"
        end = messages[-1].end
        assert (end.status.status, end.size) == (pb.STATUS_RUNNING, 6)
        await client.stop(started.job_id, grace=0)


async def test_only_the_last_message_has_an_end_and_offsets_are_exact(server):
    async with server().client() as client:
        started = await client.start(sh("for i in 1 2 3 4 5; do echo $i; sleep 0.05; done"))
        messages = await read(client, started.job_id, tail=True)
        position = 0
        for message in messages[:-1]:
            assert not message.HasField("end")
            assert message.offset == position
            assert message.output
            position += len(message.output)
        assert messages[-1].HasField("end")
        assert (messages[-1].output, messages[-1].offset) == (b"", position)
        assert messages[-1].end.size == position == 10


async def test_output_begins_at_an_offset(server):
    async with server().client() as client:
        started = await client.start(sh("printf 0123456789"))
        await read(client, started.job_id, tail=True)
        for tail in (False, True):
            assert joined(await read(client, started.job_id, tail=tail, offset=4)) == b"456789"
            assert joined(await read(client, started.job_id, tail=tail, offset=10)) == b""
            assert joined(await read(client, started.job_id, tail=tail, offset=99)) == b""


async def test_health_and_reflection_answer(server):
    running = server()
    async with running.client() as client:
        health = health_pb2_grpc.HealthStub(client._channel)
        for name in ("", "jobworker.v1.JobWorkerService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(client._channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in reflection.ServerReflectionInfo(iter([question])):
            names = {service.name for service in answer.list_services_response.service}
        assert "jobworker.v1.JobWorkerService" in names


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        (pb.StartRequest(), "INVALID_ARGUMENT", "command.name"),
        (sh("a\0b"), "INVALID_ARGUMENT", "command.args[1]"),
        (sh("", working_directory="x"), "INVALID_ARGUMENT", "working_directory"),
        (sh("", env={"A=": "x"}), "INVALID_ARGUMENT", "env"),
        (sh("", timeout=Duration(seconds=-1)), "INVALID_ARGUMENT", "timeout"),
        (sh("", stop=pb.StopPolicy(signal=99)), "INVALID_ARGUMENT", "stop.signal"),
        (sh("", limits=pb.Limits(cpus=-1)), "INVALID_ARGUMENT", "limits.cpus"),
        (sh("", limits=pb.Limits(cpu_weight=10001)), "INVALID_ARGUMENT", "limits.cpu_weight"),
        (sh("", limits=pb.Limits(cpu_weight=0)), "INVALID_ARGUMENT", "limits.cpu_weight"),
        (sh("", limits=pb.Limits(io_weight=0)), "INVALID_ARGUMENT", "limits.io_weight"),
        (sh("", limits=pb.Limits(memory_max=1)), "INVALID_ARGUMENT", "limits.memory_max"),
        (sh("", limits=pb.Limits(pids_max=0)), "INVALID_ARGUMENT", "limits.pids_max"),
        (sh("", limits=pb.Limits(memory=1, memory_max=2)), "INVALID_ARGUMENT", "limits.memory"),
        (sh("", limits=pb.Limits(cpu_burst_max=5)), "INVALID_ARGUMENT", "limits.cpu_burst_max"),
        (
            sh("", limits=pb.Limits(io_max_rbps=[pb.DeviceLimit(device="/dev/nope", value=1)])),
            "INVALID_ARGUMENT",
            "/dev/nope",
        ),
        (
            pb.StartRequest(command=pb.Command(name="true", args=["x" * 200_000])),
            "INVALID_ARGUMENT",
            "command.args",
        ),
        (
            pb.StartRequest(command=pb.Command(name="true", args=["x" * 100_000] * 60)),
            "INVALID_ARGUMENT",
            "command.args",
        ),
        (pb.StartRequest(command=pb.Command(name="nope")), "FAILED_PRECONDITION", "nope"),
        (sh("", user="nope"), "FAILED_PRECONDITION", "nope"),
        (sh("", working_directory="/nope"), "FAILED_PRECONDITION", "/nope"),
    ],
)
async def test_a_start_that_cannot_be_names_what_and_creates_nothing(server, request_, code, named):
    running = server()
    async with running.client() as client:
        found, details = await refusal(client.start(request_))
    assert (found.name, named in details) == (code, True), details
    assert len(details) < 1000
    assert list(running.log_dir.iterdir()) == []
    assert [p for p in running.jobs_cgroup.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("job_id", ["", "x", "../..", "\u00e4" * 36, "x" * 1_000_000])
async def test_a_malformed_id_is_an_invalid_argument_everywhere(server, job_id):
    async with server().client() as client:
        for call in (client.status(job_id), client.stop(job_id), read(client, job_id)):
            code, details = await refusal(call)
            assert (code.name, "job_id" in details) == ("INVALID_ARGUMENT", True)
            assert len(details) < 300


async def test_an_unknown_job_is_not_found_everywhere(server):
    job_id = str(uuid.uuid4())
    async with server().client() as client:
        for call in (client.status(job_id), client.stop(job_id), read(client, job_id)):
            code, details = await refusal(call)
            assert (code.name, job_id in details) == ("NOT_FOUND", True)


async def test_a_grace_period_that_cannot_be_is_refused(server):
    async with server().client() as client:
        started = await client.start(sh("sleep 1000"))
        code, details = await refusal(client.stop(started.job_id, grace=-1))
        assert (code.name, "grace" in details) == ("INVALID_ARGUMENT", True)
        await client.stop(started.job_id, grace=0)


async def test_a_limit_is_applied_or_refused_by_name(server):
    running = server()
    async with running.client() as client:
        for limits, file in [
            (pb.Limits(memory_max=1 << 26), "memory.max"),
            (pb.Limits(cpu_weight=50), "cpu.weight"),
            (pb.Limits(pids_max=50), "pids.max"),
        ]:
            controller = file.split(".")[0]
            offered = (running.jobs_cgroup / "cgroup.subtree_control").read_text().split()
            if controller in offered:
                started = await client.start(sh("true", limits=limits))
                field = file.replace(".", "_")
                assert getattr(started.limits, field) == getattr(limits, field)
            else:
                code, details = await refusal(client.start(sh("true", limits=limits)))
                assert code is grpc.StatusCode.FAILED_PRECONDITION
                assert file in details
                assert f"{controller} controller" in details
                assert [p for p in running.jobs_cgroup.iterdir() if p.is_dir()] == []


async def test_a_query_user_may_look_but_not_touch(server):
    running = server()
    async with running.client() as alpha, running.client("user_bravo") as bravo:
        code, _ = await refusal(bravo.start(sh("touch /tmp/never")))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert list(running.log_dir.iterdir()) == []
        started = await alpha.start(sh("echo shared; sleep 1000"))
        code, _ = await refusal(bravo.stop(started.job_id))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert (await bravo.status(started.job_id)).status.status == pb.STATUS_RUNNING
        async for message in bravo.output(started.job_id, tail=True):
            assert message.output == b"shared\n"
            break
        await alpha.stop(started.job_id, grace=0)


async def test_stop_returns_when_the_job_has_ended(server):
    running = server()
    async with running.client() as client:
        started = await client.start(sh("trap '' TERM; echo ready; sleep 1000"))
        async for _ in client.output(started.job_id, tail=True):
            break
        await asyncio.gather(*(client.stop(started.job_id, grace=0.1) for _ in range(3)))
        assert (await client.status(started.job_id)).status.status == pb.STATUS_STOPPED
        assert not (running.jobs_cgroup / started.job_id).exists()
