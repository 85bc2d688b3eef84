"""The server and the shim may be killed at any moment; jobs, output and ends outlive them."""

import asyncio
import os
import signal
import sqlite3

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.processes import alive
from tests.support.shim import keepers, signal_shim
from tests.support.waiting import PATIENCE, until


def kill_shim(running):
    signal_shim(running.run_dir, signal.SIGKILL)


async def end_of(client, job_id, begun=None):
    """Follow to the end; `begun` is set when the stream has brought something."""
    messages = []
    async for message in client.output(job_id, tail=True):
        messages.append(message)
        if begun is not None:
            begun.set()
    return b"".join(m.output for m in messages), messages[-1].end


async def follow(client, job_id):
    """Return a task that follows, once its stream has brought something."""
    begun = asyncio.Event()
    following = asyncio.create_task(end_of(client, job_id, begun))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    return following


async def ended(client, job_id):
    """Return how a job ended, once it has."""
    return (await end_of(client, job_id))[1].status


async def is_lost(client, job_id):
    return (await client.status(job_id)).status.status == pb.STATUS_LOST


async def start_with_any_shim(client, request):
    """Start a job; a shim that is just dying makes the server say UNAVAILABLE, and nothing else."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return (await client.start(request)).job_id
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.02)


async def test_a_job_goes_on_while_the_server_is_killed_and_started(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"echo one; {gate.wait}; echo two; exit 7"))).job_id
        following = await follow(client, job_id)
        for _ in range(2):
            await asyncio.to_thread(running.kill)
            await asyncio.to_thread(running.restart)
        async with running.client() as another:
            assert (await another.status(job_id)).status.status == pb.STATUS_RUNNING
        gate.open()
        content, end = await following
        assert content == b"one\ntwo\n"
        assert (end.status.exit_code, end.status.reason) == (7, pb.REASON_EXITED)


async def test_an_end_that_no_server_saw_is_known_exactly(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; echo last; exit 9"))).job_id
        await asyncio.to_thread(running.kill)
        gate.open()
        await until((running.log_dir / job_id / "exit.json").exists)
        await asyncio.to_thread(running.restart)
        status = (await client.status(job_id)).status
        assert (status.status, status.exit_code) == (pb.STATUS_EXITED, 9)
        assert (await end_of(client, job_id))[0] == b"last\n"


async def test_an_accepted_stop_is_carried_out_without_the_server(server):
    running = server()
    async with running.client() as client:
        request = sh("trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done")
        job_id = (await client.start(request)).job_id
        output = running.log_dir / job_id / "output"
        await until(lambda: b"ready" in output.read_bytes())
        stop = asyncio.create_task(client.stop(job_id, grace=3))  # The server dies before.
        await until(lambda: b"asked" in output.read_bytes())
        await asyncio.to_thread(running.kill)
        with pytest.raises(grpc.aio.AioRpcError):
            await stop
        await until(lambda: not (running.jobs_cgroup / job_id).exists())
        await asyncio.to_thread(running.restart)
        status = (await client.status(job_id)).status
        assert (status.status, status.signal) == (pb.STATUS_STOPPED, 9)


async def test_a_time_limit_is_kept_without_the_server(server):
    running = server()
    async with running.client() as client:
        request = sh("sleep 1000")
        request.timeout.FromMilliseconds(500)
        job_id = (await client.start(request)).job_id
        await asyncio.to_thread(running.kill)
        await until(lambda: not (running.jobs_cgroup / job_id).exists())
        await asyncio.to_thread(running.restart)
        assert (await client.status(job_id)).status.reason == pb.REASON_TIMED_OUT


async def test_a_terminated_server_ends_streams_cleanly_and_leaves_jobs_running(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"echo one; {gate.wait}; echo two; exit 7"))).job_id
        following = await follow(client, job_id)
        assert await asyncio.to_thread(running.terminate) == 0
        await asyncio.to_thread(running.restart)
        gate.open()
        content, end = await following
        assert (content, end.status.exit_code) == (b"one\ntwo\n", 7)


async def test_a_terminated_server_tells_those_too_whose_calls_it_has_not_taken_up(server):
    running = server()
    async with running.client() as client:
        starts = [asyncio.ensure_future(client.start(sh("true"))) for _ in range(200)]
        await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        assert await asyncio.to_thread(running.terminate) == 0
        answers = await asyncio.gather(*starts, return_exceptions=True)
    refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert {each.code() for each in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert all("shutting down" in each.details() for each in refused)


async def test_the_next_server_can_stop_what_the_last_one_left_running(server):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh("sleep 1000"))).job_id
        assert await asyncio.to_thread(running.terminate) == 0
        assert (running.jobs_cgroup / job_id / "cgroup.procs").read_text() != ""
        await asyncio.to_thread(running.restart)
        await client.stop(job_id)
        assert (await client.status(job_id)).status.status == pb.STATUS_STOPPED
        assert not (running.jobs_cgroup / job_id).exists()


async def test_a_killed_shim_leaves_jobs_running_and_new_ones_can_start(server, gate):
    running = server()
    async with running.client() as client:
        orphan = (await client.start(sh(f"{gate.wait}; echo orphan; exit 3"))).job_id
        kill_shim(running)
        other = await start_with_any_shim(client, sh("echo other"))
        assert (await end_of(client, other))[1].status.exit_code == 0
        gate.open()
        content, end = await end_of(client, orphan)
        assert content == b"orphan\n"
        assert (end.status.status, end.status.exit_code) == (pb.STATUS_EXITED, 3)
        assert not (running.jobs_cgroup / orphan).exists()


async def test_an_orphan_can_be_stopped_with_all_it_has_started(server):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh("trap '' TERM; setsid -f sleep 1000; sleep 1000"))).job_id
        kill_shim(running)
        await client.stop(job_id, grace=0.1)
        status = (await client.status(job_id)).status
        assert (status.status, status.reason) == (pb.STATUS_STOPPED, pb.REASON_STOPPED)
        assert not (running.jobs_cgroup / job_id).exists()


async def test_when_both_are_killed_the_job_goes_on_and_is_found(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"echo one; {gate.wait}; echo two; exit 4"))).job_id
        await asyncio.to_thread(running.kill)
        kill_shim(running)
        await asyncio.to_thread(running.restart)
        assert (await client.status(job_id)).status.status == pb.STATUS_RUNNING
        gate.open()
        content, end = await end_of(client, job_id)
        assert (content, end.status.exit_code) == (b"one\ntwo\n", 4)
        assert end.status.status == pb.STATUS_EXITED


@pytest.mark.parametrize("order", ["server first", "shim first", "before they die"])
@pytest.mark.parametrize(("command", "how"), [("exit 5", (5, 0)), ("kill -9 $$", (-1, 9))])
async def test_an_end_while_both_are_dead_is_known_exactly(server, gate, order, command, how):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; setsid -f sleep 1000; {command}"))).job_id
        pid = (await client.status(job_id)).job.pid
        if order == "before they die":
            signal_shim(running.run_dir, signal.SIGSTOP)
            gate.open()
            await until(lambda: not alive(pid))
        kills = [running.kill, lambda: kill_shim(running)]
        for kill in kills if order == "server first" else reversed(kills):
            await asyncio.to_thread(kill)
        gate.open()
        await until(lambda: not alive(pid))
        await asyncio.to_thread(running.restart)
        status = await ended(client, job_id)
        assert status.status == pb.STATUS_EXITED
        assert (status.exit_code, status.signal) == how
        assert not (running.jobs_cgroup / job_id).exists()
        notes = (running.run_dir / "reaped").iterdir()
        assert [each for each in notes if each.name.startswith(f"{pid}.")] == []


@pytest.mark.parametrize("server_too", [False, True], ids=["server lives", "server too"])
async def test_an_end_that_no_keeper_could_note_is_known_or_lost_with_the_reason(
    server, gate, server_too
):
    """Who reaps the job, and whether the kernel tells its end, is another matter on each host."""
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 6"))).job_id
        pid = (await client.status(job_id)).job.pid
        if server_too:
            await asyncio.to_thread(running.kill)
        for keeper in keepers(running.run_dir):
            os.kill(keeper, signal.SIGKILL)
        await until(lambda: not keepers(running.run_dir))
        kill_shim(running)
        gate.open()
        await until(lambda: not alive(pid))
        if server_too:
            await asyncio.to_thread(running.restart)
        status = await ended(client, job_id)
        known = (status.status, status.exit_code) == (pb.STATUS_EXITED, 6)
        assert known or (status.status == pb.STATUS_LOST and "keeper" in status.message)


async def test_an_accepted_stop_of_an_orphan_outlives_the_server(server):
    running = server()
    async with running.client() as client:
        request = sh("trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done")
        job_id = (await client.start(request)).job_id
        output = running.log_dir / job_id / "output"
        await until(lambda: b"ready" in output.read_bytes())
        kill_shim(running)
        stop = asyncio.create_task(client.stop(job_id, grace=3))  # The server dies before.
        await until(lambda: b"asked" in output.read_bytes())
        await asyncio.to_thread(running.kill)
        with pytest.raises(grpc.aio.AioRpcError):
            await stop
        await asyncio.to_thread(running.restart)
        status = await ended(client, job_id)
        assert (status.status, status.reason) == (pb.STATUS_STOPPED, pb.REASON_STOPPED)
        assert status.signal == 9


async def test_a_time_limit_of_an_orphan_is_kept_by_the_next_server(server):
    running = server()
    async with running.client() as client:
        request = sh("trap '' TERM; sleep 1000")
        request.timeout.FromSeconds(3)  # Server and shim have to be killed before.
        request.stop.grace.FromMilliseconds(300)
        job_id = (await client.start(request)).job_id
        await asyncio.to_thread(running.kill)
        kill_shim(running)
        await asyncio.to_thread(running.restart)
        status = await ended(client, job_id)
        assert (status.status, status.reason) == (pb.STATUS_STOPPED, pb.REASON_TIMED_OUT)
        # SIGTERM on a machine on which the shell had no time to ignore it.
        assert status.signal in (signal.SIGTERM, signal.SIGKILL)


async def test_shims_that_die_one_after_the_other_lose_no_end(server, gate):
    running = server()
    async with running.client() as client:
        jobs = []
        for code in range(1, 5):
            jobs.append(await start_with_any_shim(client, sh(f"{gate.wait}; exit {code}")))
            kill_shim(running)
        gate.open()
        codes = [(await ended(client, job_id)).exit_code for job_id in jobs]
        assert codes == [1, 2, 3, 4]


async def test_the_ends_of_200_jobs_whose_shim_is_killed_are_all_known(server, gate):
    running = server()
    async with running.client() as client:
        requests = [sh(f"{gate.wait}; exit {code % 200}") for code in range(200)]
        started = await asyncio.gather(*map(client.start, requests))
        kill_shim(running)
        gate.open()
        statuses = await asyncio.gather(*(ended(client, each.job_id) for each in started))
        assert [status.exit_code for status in statuses] == list(range(200))


async def test_a_shim_that_stands_still_loses_nothing_and_is_waited_for(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 7"))).job_id
        signal_shim(running.run_dir, signal.SIGSTOP)
        try:
            gate.open()
            assert (await client.status(job_id)).status.status == pb.STATUS_RUNNING
        finally:
            signal_shim(running.run_dir, signal.SIGCONT)
        assert (await ended(client, job_id)).exit_code == 7


async def test_nothing_of_a_restarted_host_is_signalled(server):
    """The registry says another boot id: the pid in it belongs to somebody else."""
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh("sleep 1000"))).job_id
        await asyncio.to_thread(running.kill)
        kill_shim(running)
        (running.jobs_cgroup / job_id / "cgroup.kill").write_text("1")
        bystander = await asyncio.create_subprocess_exec("sleep", "1000")
        with sqlite3.connect(running.state_dir / "jobs.db") as registry:
            registry.execute("UPDATE jobs SET boot_id = 'another', pid = ?", (bystander.pid,))
        registry.close()
        await asyncio.to_thread(running.restart)
        await until(lambda: is_lost(client, job_id))
        assert "restarted" in (await client.status(job_id)).status.message
        assert bystander.returncode is None
        bystander.kill()
        await bystander.wait()


async def test_an_unfinished_start_of_a_killed_server_leaves_nothing(server):
    """A pending record whose job no shim knows: its client never got an id."""
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh("true"))).job_id
        await end_of(client, job_id)
        await asyncio.to_thread(running.kill)
        with sqlite3.connect(running.state_dir / "jobs.db") as registry:
            registry.execute(
                "UPDATE jobs SET state = 'pending', output_size = NULL, reason = NULL, "
                "boot_id = NULL, pid = NULL, start_time = NULL, exit_code = NULL"
            )
        registry.close()
        (running.log_dir / job_id / "exit.json").unlink()
        (running.jobs_cgroup / job_id).mkdir()
        await asyncio.to_thread(running.restart)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.status(job_id)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert list(running.log_dir.iterdir()) == []
        assert not (running.jobs_cgroup / job_id).exists()
