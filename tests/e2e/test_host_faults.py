"""What happens when the host fails: full disks, no descriptors, a clock that jumps, foreign hands.

What is to happen stands in ARCHITECTURE.md, "Faults from outside".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import uuid

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.shim import wire
from jobworker.shim.proc import read_stat
from tests.support import host
from tests.support.invariants import check_invariants
from tests.support.jobs import sh
from tests.support.processes import alive, environment
from tests.support.server import Server
from tests.support.shim import shim_is_gone, shim_pid, signal_shim
from tests.support.waiting import PATIENCE, until, wait_until

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def serve(tmp_path, certs, cgroup_root):
    """Start one server in `tmp_path`: the program, or one that wraps it."""
    with contextlib.ExitStack() as stack:

        def start(*options, **how):
            running = Server(tmp_path, certs, cgroup_root, *options, **how)
            stack.callback(running.close)
            return running

        yield start


async def end_of(client, job_id):
    messages = [message async for message in client.output(job_id, tail=True)]
    return b"".join(each.output for each in messages), messages[-1].end.status


async def refusal(call):
    """Return the status and the words with which the server refuses a call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def attempt(client, request):
    """Start a job; return the status and the words of a refusal, or the job's id."""
    try:
        return None, "", (await client.start(request)).job_id
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), None


async def status_of(client, job_id):
    return (await client.status(job_id)).status


# The file system of the logs is full


async def test_no_room_for_a_log_refuses_the_start_and_leaves_nothing(serve, tmp_path):
    with host.small_file_system(tmp_path / "log", files=5), contextlib.ExitStack() as stack:
        running = serve()
        stack.callback(running.close)
        for name in "abc":
            (running.log_dir / name).touch()
        async with running.client() as client:
            code, words = await refusal(client.start(sh("true")))
            assert code is EXHAUSTED
            assert str(running.log_dir) in words
            assert "disk is full" in words
            for name in "abc":
                (running.log_dir / name).unlink()
            await check_invariants(running, client)
            job_id = (await client.start(sh("true"))).job_id
            assert (await end_of(client, job_id))[1].exit_code == 0


async def test_a_full_log_is_the_jobs_own_problem_and_its_end_is_known(serve, tmp_path):
    """Its writes fail with ENOSPC; the record of its end is written when there is room again."""
    with host.small_file_system(tmp_path / "log"), contextlib.ExitStack() as stack:
        running = serve()
        stack.callback(running.close)
        async with running.client() as client:
            job_id = (await client.start(sh("head -c 2M /dev/zero || exit 9"))).job_id
            content, status = await end_of(client, job_id)
            assert status.exit_code == 9
            assert content == bytes(len(content))
            record = running.log_dir / job_id / "exit.json"
            assert not record.exists()
            (running.log_dir / job_id / "output").write_bytes(b"")
            await until(record.exists)
            assert json.loads(record.read_text())["exit_code"] == 9


async def test_an_end_on_a_full_disk_is_told_to_the_next_server(serve, tmp_path, gate):
    with host.small_file_system(tmp_path / "log"), contextlib.ExitStack() as stack:
        running = serve()
        stack.callback(running.close)
        async with running.client() as client:
            job_id = (await client.start(sh(f"{gate.wait}; exit 9"))).job_id
            host.fill(running.log_dir / "foreign")
            running.kill()
            gate.open()
            await asyncio.to_thread(running.wait_for_end, job_id)
            await asyncio.to_thread(running.restart)
            status = await status_of(client, job_id)
            assert (status.status, status.exit_code) == (pb.STATUS_EXITED, 9)
            assert not (running.log_dir / job_id / "exit.json").exists()
            (running.log_dir / "foreign").unlink()
            await until((running.log_dir / job_id / "exit.json").exists)


# The file system of the state is full


async def test_no_room_for_the_registry_refuses_starts_and_loses_no_end(serve, tmp_path, gate):
    """The audit log lies elsewhere, so that calls are still let in."""
    with host.small_file_system(tmp_path / "state"), contextlib.ExitStack() as stack:
        running = serve("--audit-log", str(tmp_path / "audit.log"))
        stack.callback(running.close)
        async with running.client() as client:
            job_id = (await client.start(sh(f"echo one; {gate.wait}; echo two; exit 9"))).job_id
            host.fill(running.state_dir / "foreign")
            code, words = await exhaust(client)
            assert code is EXHAUSTED
            assert str(running.state_dir) in words
            gate.open()
            content, status = await end_of(client, job_id)
            assert (content, status.exit_code) == (b"one\ntwo\n", 9)
            assert (await status_of(client, job_id)).exit_code == 9
            (running.state_dir / "foreign").unlink()
            job_id = (await client.start(sh("exit 3"))).job_id
            assert (await end_of(client, job_id))[1].exit_code == 3
            await check_invariants(running, client)


async def exhaust(client):
    """Start jobs until one is refused: the registry's files may have some room of their own."""
    for _ in range(200):
        code, words, _ = await attempt(client, sh("true"))
        if code is not None:
            return code, words
    return None, ""


async def test_no_room_for_the_audit_log_refuses_every_call(serve, tmp_path, gate):
    """What leaves no trace is not done."""
    with host.small_file_system(tmp_path / "audit"), contextlib.ExitStack() as stack:
        running = serve("--audit-log", str(tmp_path / "audit" / "audit.log"))
        stack.callback(running.close)
        async with running.client() as client:
            job_id = (await client.start(sh(f"{gate.wait}; exit 9"))).job_id
            host.fill(tmp_path / "audit" / "foreign")
            refused = []
            for _ in range(200):
                code, words, _ = await attempt(client, sh("exit 1"))
                refused += [words] if code is EXHAUSTED else []
                if refused:
                    break
            assert "audit log" in refused[0]
            assert "disk is full" in refused[0]
            (tmp_path / "audit" / "foreign").unlink()
            gate.open()
            assert (await end_of(client, job_id))[1].exit_code == 9
            await check_invariants(running, client)


# No descriptor is left


async def test_a_server_without_descriptors_refuses_and_recovers(serve, gate):
    running = serve()
    pid = running.process.pid
    async with running.client() as client, running.client() as late:
        ended = (await client.start(sh("exit 3"))).job_id
        await end_of(client, ended)
        job_id = (await client.start(sh(f"echo before; {gate.wait}; echo after"))).job_id
        await status_of(client, job_id)
        before = host.descriptors(pid)
        with host.few_descriptors(pid):
            code, words = await refusal(client.start(sh("true")))
            assert (code, "descriptor" in words) == (EXHAUSTED, True), words
            code, words = await refusal(anext(client.output(job_id)))
            assert (code, "descriptor" in words) == (EXHAUSTED, True), words
            assert (await status_of(client, ended)).exit_code == 3
            knocking = asyncio.create_task(late.status(job_id))
            await asyncio.wait([knocking], timeout=0.5)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await knocking
        async with running.client() as another:
            await until(lambda: answers(another, job_id))
        gate.open()
        assert (await end_of(client, job_id))[0] == b"before\nafter\n"
        await check_invariants(running, client)
        await late.close()
        await until(lambda: host.descriptors(pid) <= before, "nothing leaked")


async def answers(client, job_id):
    try:
        await client.status(job_id)
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_a_start_that_runs_out_of_descriptors_midway_leaves_nothing(serve):
    running = serve()
    async with running.client() as client:
        await end_of(client, (await client.start(sh("true"))).job_id)
        for spare in range(12):
            with host.few_descriptors(running.process.pid, spare):
                code, words, _ = await attempt(client, sh("true"))
            assert code in (None, EXHAUSTED), words
            await check_invariants(running, client)
        job_id = (await client.start(sh("exit 3"))).job_id
        assert (await end_of(client, job_id))[1].exit_code == 3


async def test_a_shim_without_descriptors_refuses_and_recovers(serve):
    running = serve()
    async with running.client() as client:
        await end_of(client, (await client.start(sh("true"))).job_id)
        for spare in range(8):
            with host.few_descriptors(shim_pid(running.run_dir), spare):
                code, words, job_id = await attempt(client, sh("exit 3"))
            if code is None:
                assert (await end_of(client, job_id))[1].exit_code == 3
            else:
                assert (code, "descriptor" in words) == (EXHAUSTED, True), words
            await check_invariants(running, client)
        job_id = (await client.start(sh("exit 4"))).job_id
        assert (await end_of(client, job_id))[1].exit_code == 4


# The kernel watches no more files


@pytest.mark.parametrize(
    ("method", "number", "remedy"),
    [
        ("add", errno.ENOSPC, "fs.inotify.max_user_watches"),
        ("__init__", errno.EMFILE, "fs.inotify.max_user_instances"),
    ],
)
async def test_followers_get_every_byte_without_inotify(serve, gate, method, number, remedy):
    running = serve(program=host.without_inotify(method, number))
    async with running.client() as client:
        script = f"echo first; {gate.wait}; seq 1 100000; sleep 0.3; echo last"
        job_id = (await client.start(sh(script))).job_id
        followers = [asyncio.create_task(end_of(client, job_id)) for _ in range(3)]
        await until(lambda: remedy in running.messages.read_text())
        gate.open()
        expected = b"first\n" + b"".join(b"%d\n" % n for n in range(1, 100001)) + b"last\n"
        for content, status in await asyncio.gather(*followers):
            assert content == expected
            assert status.exit_code == 0


# The clock jumps


@pytest.mark.parametrize("jump", [-86400.0, 86400.0], ids=["back", "forth"])
async def test_a_clock_that_jumps_changes_no_duration(serve, tmp_path, jump):
    offset = tmp_path / "offset"
    running = serve(program=host.with_clock(offset))
    async with running.client() as client:
        limited = sh("sleep 1000")
        limited.timeout.FromMilliseconds(1500)
        begun = asyncio.get_running_loop().time()
        limited_id = (await client.start(limited)).job_id
        stubborn = sh("trap '' TERM; echo ready; while :; do sleep 0.05; done")
        stubborn_id = (await client.start(stubborn)).job_id
        output = running.log_dir / stubborn_id / "output"
        await until(lambda: b"ready" in output.read_bytes())
        offset.write_text(str(jump))
        stopping = asyncio.get_running_loop().time()
        await client.stop(stubborn_id, grace=0.5)
        stopped = asyncio.get_running_loop().time()
        _, status = await end_of(client, limited_id)
        ended = asyncio.get_running_loop().time()
        assert status.reason == pb.REASON_TIMED_OUT
        assert 0.5 <= stopped - stopping < 3600
        assert 1.5 <= ended - begun < 3600
        for job_id in (limited_id, stubborn_id):
            job = (await client.status(job_id)).job
            assert job.started_at.ToNanoseconds() <= job.ended_at.ToNanoseconds()


@pytest.mark.parametrize("jump", [-86400.0, 86400.0], ids=["back", "forth"])
async def test_a_clock_that_jumps_changes_no_duration_of_a_job_without_a_shim(
    serve, tmp_path, jump
):
    offset = tmp_path / "offset"
    running = serve(program=host.with_clock(offset))
    async with running.client() as client:
        request = sh("sleep 1000")
        request.timeout.FromMilliseconds(2500)
        begun = asyncio.get_running_loop().time()
        job_id = (await client.start(request)).job_id
        running.kill()
        signal_shim(running.run_dir, signal.SIGKILL)
        offset.write_text(str(jump))
        await asyncio.to_thread(running.restart)
        _, status = await end_of(client, job_id)
        assert status.reason == pb.REASON_TIMED_OUT, status
        assert 2.5 <= asyncio.get_running_loop().time() - begun < 3600
        job = (await client.status(job_id)).job
        assert job.started_at.ToNanoseconds() <= job.ended_at.ToNanoseconds()


# exit.json is not what the shim has written


def garbage(path, _others):
    path.write_bytes(os.urandom(200))


def nothing(path, _others):
    path.write_bytes(b"")


def truncated(path, _others):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def directory(path, _others):
    path.unlink()
    path.mkdir()


def fifo(path, _others):
    path.unlink()
    os.mkfifo(path)


def symlink(path, others):
    path.unlink()
    path.symlink_to(others)


def foreign(path, others):
    path.write_bytes(others.read_bytes())


def huge(path, _others):
    with path.open("wb") as file:
        file.truncate(1 << 40)


FORGERIES = [garbage, nothing, truncated, directory, fifo, symlink, foreign, huge]


async def test_a_forged_exit_record_is_not_believed(serve, gate):
    """The jobs ended while no server was there, and their records were exchanged then."""
    running = serve()
    async with running.client() as client:
        other = (await client.start(sh("exit 5"))).job_id
        await end_of(client, other)
        jobs = {}
        for forge in FORGERIES:
            jobs[forge] = (await client.start(sh(f"{gate.wait}; exit 6"))).job_id
        running.kill()
        gate.open()
        await until(lambda: shim_is_gone(running.run_dir))
        record = running.log_dir / other / "exit.json"
        for forge, job_id in jobs.items():
            forge(running.log_dir / job_id / "exit.json", record)
        await asyncio.to_thread(running.restart)
        for forge, job_id in jobs.items():
            _, status = await end_of(client, job_id)
            assert status.status == pb.STATUS_LOST, forge
            assert "exit record" in status.message, forge
        job_id = (await client.start(sh("exit 7"))).job_id
        assert (await end_of(client, job_id))[1].exit_code == 7
        await check_invariants(running, client)


async def test_what_is_in_the_place_of_an_exit_record_keeps_no_end_from_being_known(serve, gate):
    running = serve()
    async with running.client() as client:
        other = (await client.start(sh("exit 5"))).job_id
        await end_of(client, other)
        jobs = {}
        for forge in FORGERIES:
            jobs[forge] = (await client.start(sh(f"{gate.wait}; exit 6"))).job_id
            path = running.log_dir / jobs[forge] / "exit.json"
            path.write_bytes(b"{}")
            forge(path, running.log_dir / other / "exit.json")
        gate.open()
        for forge, job_id in jobs.items():
            assert (await end_of(client, job_id))[1].exit_code == 6, forge
            record = json.loads((running.log_dir / job_id / "exit.json").read_text())
            assert record["job_id"] == job_id


# Directories and sockets are taken away


async def test_a_job_whose_directory_is_deleted_goes_on_and_its_end_is_known(serve, gate):
    running = serve()
    async with running.client() as client:
        job_id = (await client.start(sh(f"echo one; {gate.wait}; echo two; exit 7"))).job_id
        stream = client.output(job_id, tail=True)
        assert (await anext(stream)).output == b"one\n"
        shutil.rmtree(running.log_dir / job_id)
        code, words = await refusal(anext(client.output(job_id)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"{running.log_dir / job_id}: it does not exist" in words
        assert (await status_of(client, job_id)).status == pb.STATUS_RUNNING
        gate.open()
        rest = [message async for message in stream]
        assert b"".join(each.output for each in rest) == b"two\n"
        assert rest[-1].end.status.exit_code == 7
        assert (await status_of(client, job_id)).exit_code == 7
        await asyncio.to_thread(running.restart)
        assert (await status_of(client, job_id)).exit_code == 7


async def test_a_server_whose_run_directory_is_deleted_serves_on(serve, gate):
    running = serve()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 7"))).job_id
        shim = shim_pid(running.run_dir)
        shutil.rmtree(running.run_dir)
        other = (await client.start(sh("exit 5"))).job_id
        assert (await end_of(client, other))[1].exit_code == 5
        running.kill()
        await asyncio.to_thread(running.restart)
        assert (await status_of(client, job_id)).status == pb.STATUS_RUNNING
        gate.open()
        assert (await end_of(client, job_id))[1].exit_code == 7
        await check_invariants(running, client)
        await until(lambda: not alive(shim), "the old shim has left")


async def test_a_shim_whose_socket_is_removed_is_reached_by_the_next_server(serve, gate):
    running = serve()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 7"))).job_id
        running.kill()
        (running.run_dir / wire.SOCKET_NAME).unlink()
        await asyncio.to_thread(running.restart)
        gate.open()
        assert (await end_of(client, job_id))[1].exit_code == 7


@contextlib.contextmanager
def stopped(pid):
    """Stop a process, which goes on in the end if it is alive; gives what sends it a signal."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        wait_until(lambda: read_stat(pid).state == "T", f"process {pid} is stopped")
        yield functools.partial(signal.pidfd_send_signal, pidfd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os.close(pidfd)


@pytest.mark.parametrize("remedy", ["kill -CONT", "kill -9"])
async def test_a_server_that_finds_a_stopped_shim_names_it_and_what_helps(serve, gate, remedy):
    running = serve()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 7"))).job_id
        assert await asyncio.to_thread(running.terminate) == 0
        pid = shim_pid(running.run_dir)
        with stopped(pid) as send:
            usual, running.program = (
                running.program,
                host.wrapped(
                    server="from jobworker.shim import client; client._HELLO_PATIENCE = 0.5"
                ),
            )
            refused = await asyncio.to_thread(
                subprocess.run,
                running.command(),
                env=environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert (refused.returncode, refused.stdout) == (1, "")
            assert f"process {pid} is stopped (state T" in refused.stderr
            assert f"{remedy} {pid}" in refused.stderr
            send(signal.SIGCONT if "CONT" in remedy else signal.SIGKILL)
        running.program = usual
        await asyncio.to_thread(running.restart)
        gate.open()
        assert (await end_of(client, job_id))[1].exit_code == 7


async def test_a_shim_that_stands_still_is_unavailable_and_its_requests_are_not_lost(
    serve, tmp_path
):
    impatient = "from jobworker.job.custody import patience; patience.LAUNCH = 1.0"

    async def persist(request):
        """Start a job that a slow machine has no second for, too."""
        started = []

        async def is_started():
            code, words, job_id = await attempt(client, request)
            assert code in (None, grpc.StatusCode.UNAVAILABLE), words
            started.append(job_id)
            return code is None

        await until(is_started)
        return started[-1]

    running = serve(program=host.wrapped(server=impatient))
    executions = tmp_path / "executions"
    async with running.client() as client:
        await end_of(client, await persist(sh("true", request_id=str(uuid.uuid4()))))
        request = sh(f"echo x >> {executions}", request_id=str(uuid.uuid4()))
        signal_shim(running.run_dir, signal.SIGSTOP)
        try:
            code, words = await refusal(client.start(request))
        finally:
            signal_shim(running.run_dir, signal.SIGCONT)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "the shim did not" in words
        job_id = await persist(request)
        assert (await end_of(client, job_id))[1].exit_code == 0
        await check_invariants(running, client)
        assert executions.read_text() == "x\n"
