"""The server, the shim or both are killed at each step of the program; nothing is lost or doubled.

A client that hears nothing asks again with the same request_id, as clients do.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import uuid

import grpc
import pytest

from jobworker import steps
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.testing.faults import SERVER, SHIM
from tests.support.cgroups import own_cgroup
from tests.support.faults import FaultyServer
from tests.support.jobs import sh
from tests.support.shim import shim_is_gone, signal_shim
from tests.support.waiting import PATIENCE, until

VICTIMS = [(SERVER,), (SHIM,), (SERVER, SHIM)]
each_victim = pytest.mark.parametrize("victims", VICTIMS, ids="+".join)

CONTENT = b"".join(b"%d\n" % number for number in range(2000))


def named(*prefixes):
    """Parametrize a test over the steps whose names begin like that."""
    found = [name for name in steps.TABLE if name.startswith(prefixes)]
    return pytest.mark.parametrize("step", found)


@pytest.fixture(scope="module")
def programs(tmp_path_factory, certs, cgroup_mount):
    """One server for all tests here: each of them kills it, and starts it again."""
    with own_cgroup(cgroup_mount) as cgroup_root:
        server = FaultyServer(tmp_path_factory.mktemp("faulty"), certs, cgroup_root)
        try:
            yield server
        finally:
            server.close()


@pytest.fixture
def faulty(programs):
    """The server, running, with no order that another test has left."""
    programs.countermand()
    if programs.process.poll() is not None:
        programs.restart()
    return programs


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


def is_known_or_excusably_lost(status, code, victims, *, launching=False):
    """If both died, nobody may have seen the end; if the shim died in a launch, nobody the job."""
    excused = victims == (SERVER, SHIM) or (SHIM in victims and launching)
    if excused and status.status == pb.STATUS_LOST:
        return bool(status.message)
    return (status.status, status.exit_code) == (pb.STATUS_EXITED, code)


UNDECIDED = (
    "server.start.sent",
    "shim.launch.received",
    "shim.launch.cloned",
    "child.launch.executing",
    "shim.launch.executed",
    "shim.launch.answered",
)
"""Steps at which a launch is under way, and only the shim could tell whether it came about."""


@each_victim
@named("server.start.", "shim.launch.", "child.", "shim.end.", "server.end.")
async def test_a_job_runs_once_and_is_known_to_its_end(faulty, executions, step, victims):
    request = job(executions)
    faulty.order(step, *victims)
    async with faulty.client() as client:
        async with under_way(start_and_follow(client, request)):
            await strike(faulty, victims)
        job_id = (await persist(lambda: client.start(request))).job_id
        content, status = await end_of(client, job_id)
        assert executions.read_text() == "x\n"
        assert content == CONTENT
        launching = step in UNDECIDED
        assert is_known_or_excusably_lost(status, 7, victims, launching=launching), status
        await faulty.check_invariants(client)


@each_victim
@pytest.mark.parametrize("step", ["shim.launch.cloned", "shim.launch.executed"])
async def test_a_command_that_has_run_already_is_not_run_again(faulty, executions, step, victims):
    """The blow falls when the command has been executed, and no server knows that."""
    request = job(executions)
    faulty.order(step, *victims, after=executions)
    async with faulty.client() as client:
        async with under_way(start_and_follow(client, request)):
            await strike(faulty, victims)
        job_id = (await persist(lambda: client.start(request))).job_id
        content, status = await end_of(client, job_id)
        assert (executions.read_text(), content) == ("x\n", CONTENT)
        assert is_known_or_excusably_lost(status, 7, victims, launching=True), status
        await faulty.check_invariants(client)


@each_victim
@named("shim.failed.", "server.abandon.")
async def test_a_command_that_is_not_there_leaves_nothing(faulty, step, victims):
    missing = pb.Command(name="/nonexistent/command")
    request = pb.StartRequest(command=missing, request_id=str(uuid.uuid4()))
    before = set(faulty.log_dir.iterdir())
    faulty.order(step, *victims)
    async with faulty.client() as client:
        async with under_way(client.start(request)):
            await strike(faulty, victims)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await persist(lambda: client.start(request))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await faulty.check_invariants(client)
    assert set(faulty.log_dir.iterdir()) == before


@each_victim
@named("server.stop.", "shim.stop.", "shim.deadline.")
async def test_a_stop_that_is_asked_for_until_it_is_answered_ends_the_job(
    faulty, executions, step, victims
):
    """The job ignores the signal, so that the end of the grace period comes too."""
    request = job(executions, "trap '' TERM; echo begun; sleep 1000; sleep 1000")
    async with faulty.client() as client:
        job_id = (await persist(lambda: client.start(request))).job_id
        output = faulty.log_dir / job_id / "output"
        await until(lambda: output.read_bytes() == b"begun\n")
        faulty.order(step, *victims)
        async with under_way(client.stop(job_id, grace=0.1)):
            await strike(faulty, victims)
        await persist(lambda: client.stop(job_id, grace=0.1))
        content, status = await end_of(client, job_id)
        assert (content, executions.read_text()) == (b"begun\n", "x\n")
        known = status.status == pb.STATUS_STOPPED
        assert known or (SHIM in victims and status.status == pb.STATUS_LOST), status
        await faulty.check_invariants(client)


@pytest.mark.parametrize("victims", [(SERVER,), (SERVER, SHIM)], ids="+".join)
@named("server.recovery.")
async def test_a_server_that_dies_while_it_starts_harms_no_job(
    faulty, executions, gate, step, victims
):
    request = job(executions, f"{gate.wait}; seq 0 1999; exit 7")
    async with faulty.client() as client:
        job_id = (await persist(lambda: client.start(request))).job_id
        faulty.kill()
        faulty.order(step, *victims)
        await asyncio.to_thread(faulty.start_and_die)
        await asyncio.to_thread(faulty.restart)
        assert (await persist(lambda: client.start(request))).job_id == job_id
        gate.open()
        content, status = await end_of(client, job_id)
        assert (content, executions.read_text()) == (CONTENT, "x\n")
        assert is_known_or_excusably_lost(status, 7, victims), status
        await faulty.check_invariants(client)


@named("shim.begin.")
async def test_a_shim_that_dies_while_it_starts_is_followed_by_another(faulty, executions, step):
    async with faulty.client() as client:
        await persist(lambda: client.start(sh("true")))
        faulty.order(step, SHIM)
        signal_shim(faulty.run_dir, signal.SIGKILL)
        await faulty.carried_out(SHIM)
        content, _ = await end_of(
            client, (await persist(lambda: client.start(job(executions)))).job_id
        )
        assert (content, executions.read_text()) == (CONTENT, "x\n")
        await faulty.check_invariants(client)


async def test_a_shim_that_dies_while_it_leaves_is_followed_by_another(faulty, executions):
    async with faulty.client() as client:
        await faulty.check_invariants(client)
        faulty.order("shim.leave.retired", SHIM)
        await asyncio.to_thread(faulty.terminate)
        await faulty.carried_out(SHIM)
        await until(lambda: shim_is_gone(faulty.run_dir))
        await asyncio.to_thread(faulty.restart)
        content, _ = await end_of(
            client, (await persist(lambda: client.start(job(executions)))).job_id
        )
        assert (content, executions.read_text()) == (CONTENT, "x\n")


def test_every_step_is_killed_at():
    """A step that is new needs a test that reaches it; those of a removal are in test_remove.py."""
    tests = (each for name, each in globals().items() if name.startswith("test_"))
    marks = [mark for test in tests for mark in getattr(test, "pytestmark", ())]
    killed = {each for mark in marks if mark.args[0] == "step" for each in mark.args[1]}
    others = {name for name in steps.TABLE if name.startswith("server.remove.")}
    assert killed | others | {"shim.leave.retired"} == set(steps.TABLE)


ROUNDS = 10
RANDOM_STEPS = sorted(
    name
    for name in steps.TABLE
    if name.startswith(("server.start.", "shim.launch.", "shim.end.", "server.end."))
)


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_several_jobs_survive_a_blow_in_the_midst_of_them(faulty, tmp_path, seed):
    """The blow falls at a random step of one of them, whatever the others are doing then."""
    choose = random.Random(seed)
    step, victims = choose.choice(RANDOM_STEPS), choose.choice(VICTIMS)
    requests = []
    for number in range(5):
        executions = tmp_path / f"executions-{number}"
        lines, code = choose.randrange(3000), choose.randrange(100)
        script = f"seq 1 {lines}; sleep 0.0{choose.randrange(10)}; exit {code}"
        requests.append((job(executions, script), executions, lines, code))
    faulty.order(step, *victims, count=choose.randrange(1, 5))
    async with faulty.client() as client, contextlib.AsyncExitStack() as stack:
        for request, *_ in requests:
            await stack.enter_async_context(under_way(start_and_follow(client, request)))
        await strike(faulty, victims)
        for request, executions, lines, code in requests:
            job_id = (await persist(lambda request=request: client.start(request))).job_id
            content, status = await end_of(client, job_id)
            assert executions.read_text() == "x\n"
            assert content == b"".join(b"%d\n" % each for each in range(1, lines + 1))
            assert is_known_or_excusably_lost(status, code, victims, launching=True), status
        await faulty.check_invariants(client)
