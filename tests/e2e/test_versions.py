"""A server that is upgraded, or put back: shims of other versions keep their jobs to the end."""

import asyncio
import os
import signal
import sys

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.processes import JOBWORKER, alive
from tests.support.shim import keepers, shim_pid
from tests.support.waiting import until

OLDER = (sys.executable, "-m", "tests.support.versions", "1", "1")
NEWER = (sys.executable, "-m", "tests.support.versions", "3", "2,3")


async def replace_server(running, program):
    """Start another version of the server in the place of the one that runs."""
    running.program = program
    await asyncio.to_thread(running.restart)


async def ended(client, job_id):
    messages = [message async for message in client.output(job_id, tail=True)]
    return messages[-1].end.status


async def is_running(client, job_id):
    return (await client.status(job_id)).status.status == pb.STATUS_RUNNING


@pytest.mark.parametrize(("older", "newer"), [(OLDER, JOBWORKER), (JOBWORKER, NEWER)])
async def test_a_newer_server_follows_and_stops_the_jobs_of_an_older_shim(
    server, gate, older, newer
):
    running = server()
    await replace_server(running, older)
    async with running.client() as client:
        followed = (await client.start(sh(f"{gate.wait}; exit 3"))).job_id
        stopped = (await client.start(sh("sleep 1000"))).job_id
        await replace_server(running, newer)
        assert b"a shim of protocol version" in running.messages.read_bytes()
        new = (await client.start(sh(f"{gate.wait}; exit 4"))).job_id
        await until(lambda: len(keepers(running.run_dir)) == 2, "the new shim has its keeper")
        await client.stop(stopped)
        status = await ended(client, stopped)
        assert (status.status, status.signal) == (pb.STATUS_STOPPED, 15)
        gate.open()
        assert (await ended(client, followed)).exit_code == 3
        assert (await ended(client, new)).exit_code == 4
        await until(lambda: len(keepers(running.run_dir)) == 1, "the old shim left")


async def test_an_older_shim_that_is_killed_loses_no_end(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 5"))).job_id
        older = shim_pid(running.run_dir)
        await replace_server(running, NEWER)
        os.kill(older, signal.SIGKILL)
        gate.open()
        assert (await ended(client, job_id)).exit_code == 5
        assert (await client.start(sh("true"))).job_id


@pytest.mark.parametrize("blow", ["stop", "kill"])
async def test_jobs_of_a_shim_that_this_server_cannot_speak_to_are_never_lost(server, gate, blow):
    running = server()
    await replace_server(running, NEWER)
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 6"))).job_id
        pid = (await client.status(job_id)).job.pid
        foreign = shim_pid(running.run_dir)
        await replace_server(running, JOBWORKER)
        assert b"protocol version 3" in running.messages.read_bytes()
        assert await is_running(client, job_id)
        os.kill(foreign, signal.SIGSTOP)
        gate.open()
        if blow == "stop":
            await until(lambda: not alive(pid))
            assert await is_running(client, job_id)
            os.kill(foreign, signal.SIGCONT)
        else:
            os.kill(foreign, signal.SIGKILL)
        status = await ended(client, job_id)
        assert (status.status, status.exit_code) == (pb.STATUS_EXITED, 6)


async def test_a_job_of_a_shim_that_this_server_cannot_speak_to_can_be_stopped(server):
    running = server()
    await replace_server(running, NEWER)
    async with running.client() as client:
        job_id = (await client.start(sh("sleep 1000"))).job_id
        await replace_server(running, JOBWORKER)
        await client.stop(job_id)
        status = await ended(client, job_id)
        assert (status.status, status.reason) == (pb.STATUS_STOPPED, pb.REASON_STOPPED)
