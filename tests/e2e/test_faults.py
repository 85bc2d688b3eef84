"""The server, the shim or both are killed at each step of the program; nothing is lost or doubled.

A client that hears nothing asks again with the same request_id, as clients do.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import grpc
import pytest

from jobworker import steps
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.testing.faults import SERVER, SHIM
from tests.support.cgroups import own_cgroup
from tests.support.faults import FaultyServer
from tests.support.invariants import check_invariants
from tests.support.jobs import sh
from tests.support.waiting import PATIENCE

VICTIMS = [(SERVER,), (SHIM,), (SERVER, SHIM)]
each_victim = pytest.mark.parametrize("victims", VICTIMS, ids="+".join)

CONTENT = b"".join(b"%d\n" % number for number in range(2000))


def named(*prefixes):
    """Parametrize a test over the steps whose names begin like that."""
    found = [name for name in steps.TABLE if name.startswith(prefixes)]
    return pytest.mark.parametrize("step", found)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, certs, cgroup_mount):
    """One server for all tests here: each of them kills it, and starts it again."""
    with own_cgroup(cgroup_mount) as cgroup_root:
        server = FaultyServer(tmp_path_factory.mktemp("faulty"), certs, cgroup_root)
        try:
            yield server
        finally:
            server.close()


@pytest.fixture
def executions(tmp_path):
    """A file to which each execution of a job adds a line."""
    path = tmp_path / "executions"
    path.touch()
    return path


def job(executions, script="seq 0 1999; exit 7"):
    return sh(f"echo x >> {executions}; {script}", request_id=str(uuid.uuid4()))


async def persist(call):
    """Make a call until the server answers it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.02)


async def end_of(client, job_id):
    """Follow a job to its end; return its output and its status."""
    messages = [message async for message in client.output(job_id, tail=True)]
    return b"".join(each.output for each in messages), messages[-1].end.status


@contextlib.asynccontextmanager
async def under_way(coroutine):
    """Let a call go on during the block; how it ends does not matter."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task


async def start_and_follow(client, request):
    job_id = (await client.start(request)).job_id
    return await end_of(client, job_id)


async def strike(faulty, victims):
    """Wait for the blow, and start the server again if it was struck."""
    await faulty.carried_out(*victims)
    if SERVER in victims:
        await asyncio.to_thread(faulty.restart)


def is_known_or_excusably_lost(status, code, victims):
    if SHIM in victims and status.status == pb.STATUS_LOST:
        return bool(status.message)
    return (status.status, status.exit_code) == (pb.STATUS_EXITED, code)


@each_victim
@named("server.start.", "shim.launch.", "child.", "shim.end.", "server.end.")
async def test_a_job_runs_once_and_is_known_to_its_end(faulty, executions, step, victims):
    if step == "shim.launch.failing":
        pytest.skip("see below")
    request = job(executions)
    faulty.order(step, *victims)
    async with faulty.client() as client:
        async with under_way(start_and_follow(client, request)):
            await strike(faulty, victims)
        job_id = (await persist(lambda: client.start(request))).job_id
        content, status = await end_of(client, job_id)
        assert executions.read_text() == "x\n"
        assert content == CONTENT
        assert is_known_or_excusably_lost(status, 7, victims), status
        await check_invariants(faulty, client)
