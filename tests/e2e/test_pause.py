"""Pause and Resume on the real kernel: what stands still, and how a paused job ends."""

import asyncio
import json
import os
import signal

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.shim import signal_shim
from tests.support.waiting import PATIENCE, until

BUSY = "while :; do :; done"
POLITE = (
    "exec 2> /dev/null; trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.02; done"
)


async def start(client, script, awaited=b"", **fields):
    """Start a script, and return its id once it has written what is `awaited`."""
    job_id = (await client.start(sh(script, **fields))).job_id
    if awaited:
        async for message in client.output(job_id, tail=True):
            if awaited in message.output:
                break
    return job_id


async def output_of(client, job_id):
    return b"".join([message.output async for message in client.output(job_id, tail=True)])


async def is_paused(client, job_id):
    return (await client.status(job_id)).job.paused


def cpu_time(running, job_id):
    """Return what the job has used, in microseconds."""
    text = (running.jobs_cgroup / job_id / "cpu.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["usage_usec"])


async def test_a_paused_job_stands_still_and_goes_on_when_it_is_resumed(server):
    running = server()
    async with running.client() as client:
        job_id = await start(client, BUSY)
        await client.pause(job_id)
        status = await client.status(job_id)
        assert status.job.paused
        assert status.status.status == pb.STATUS_RUNNING
        events = (running.jobs_cgroup / job_id / "cgroup.events").read_text()
        assert "frozen 1" in events

        used = cpu_time(running, job_id)
        await output_of(
            client, await start(client, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        )
        assert cpu_time(running, job_id) == used

        await client.resume(job_id)
        assert not await is_paused(client, job_id)
        await until(lambda: cpu_time(running, job_id) > used)
        await client.stop(job_id, grace=0)


async def test_pausing_and_resuming_twice_is_once(server):
    async with server().client() as client:
        job_id = await start(client, "sleep 1000")
        for _ in range(2):
            await client.pause(job_id)
            assert await is_paused(client, job_id)
        for _ in range(2):
            await client.resume(job_id)
            assert not await is_paused(client, job_id)
        await client.stop(job_id, grace=0)


async def test_a_pause_outlives_the_server(server):
    running = server()
    async with running.client() as client:
        job_id = await start(client, POLITE, b"ready")
        await client.pause(job_id)
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(running.restart)
        assert await is_paused(client, job_id)
        await client.resume(job_id)
        assert not await is_paused(client, job_id)
        await client.stop(job_id, grace=1000)
        assert await output_of(client, job_id) == b"ready\nasked\n"


async def test_stop_lets_a_paused_job_use_its_grace_period(server):
    async with server().client() as client:
        job_id = await start(client, POLITE, b"ready")
        await client.pause(job_id)
        await asyncio.wait_for(client.stop(job_id, grace=1000), PATIENCE)
        status = await client.status(job_id)
        assert (status.status.status, status.status.exit_code) == (pb.STATUS_STOPPED, 5)
        assert not status.job.paused
        assert await output_of(client, job_id) == b"ready\nasked\n"


async def test_stop_at_once_kills_a_paused_job(server):
    async with server().client() as client:
        job_id = await start(client, POLITE, b"ready")
        await client.pause(job_id)
        await asyncio.wait_for(client.stop(job_id, grace=0), PATIENCE)
        assert (await client.status(job_id)).status.signal == signal.SIGKILL
        assert await output_of(client, job_id) == b"ready\n"


async def test_the_time_of_a_paused_job_goes_on_and_it_ends_in_its_grace_period(server):
    async with server().client() as client:
        fields = pb.StartRequest()
        fields.timeout.FromMilliseconds(3000)  # It has to be paused before.
        fields.stop.grace.FromSeconds(1000)
        job_id = await start(client, POLITE, b"ready", timeout=fields.timeout, stop=fields.stop)
        await client.pause(job_id)
        assert await asyncio.wait_for(output_of(client, job_id), PATIENCE) == b"ready\nasked\n"
        status = (await client.status(job_id)).status
        assert (status.reason, status.exit_code) == (pb.REASON_TIMED_OUT, 5)


async def test_a_main_process_that_is_killed_while_paused_ends_the_job(server):
    running = server()
    async with running.client() as client:
        job_id = await start(client, f"sleep 1000 & echo ready; {BUSY}", b"ready")
        await client.pause(job_id)
        os.kill((await client.status(job_id)).job.pid, signal.SIGKILL)
        assert await asyncio.wait_for(output_of(client, job_id), PATIENCE) == b"ready\n"
        status = (await client.status(job_id)).status
        assert (status.status, status.reason) == (pb.STATUS_EXITED, pb.REASON_SIGNALED)
        assert not (running.jobs_cgroup / job_id).exists()


@pytest.mark.parametrize("nested", ["", "/nested"])
async def test_a_job_that_has_frozen_itself_is_thawed_when_it_is_stopped(server, nested):
    running = server()
    cgroup = f"{running.jobs_cgroup}/$JOBWORKER_JOB_ID{nested}"
    script = (
        f"mkdir -p {cgroup}; echo $$ > {cgroup}/cgroup.procs; echo 1 > {cgroup}/cgroup.freeze; "
    )
    async with running.client() as client:
        job_id = await start(client, script + POLITE)
        events = running.jobs_cgroup / f"{job_id}{nested}" / "cgroup.events"
        await until(lambda: events.exists() and "frozen 1" in events.read_text())
        assert await is_paused(client, job_id) is (not nested)
        # It may have frozen itself before it has set its trap.
        await asyncio.wait_for(client.stop(job_id, grace=1000), PATIENCE)
        status = (await client.status(job_id)).status
        assert (status.status, status.signal) in [(pb.STATUS_STOPPED, 15), (pb.STATUS_STOPPED, 0)]


async def test_stop_thaws_a_paused_job_whose_shim_has_died(server):
    running = server()
    async with running.client() as client:
        job_id = await start(client, POLITE, b"ready")
        await client.pause(job_id)
        signal_shim(running.run_dir, signal.SIGKILL)
        assert await is_paused(client, job_id)
        await asyncio.wait_for(client.stop(job_id, grace=1000), PATIENCE)
        status = (await client.status(job_id)).status
        assert (status.status, status.reason) == (pb.STATUS_STOPPED, pb.REASON_STOPPED)
        assert await output_of(client, job_id) == b"ready\nasked\n"


async def test_an_orphan_can_be_paused_and_resumed(server):
    running = server()
    async with running.client() as client:
        job_id = await start(client, POLITE, b"ready")
        signal_shim(running.run_dir, signal.SIGKILL)
        await client.pause(job_id)
        assert await is_paused(client, job_id)
        await client.resume(job_id)
        await client.stop(job_id, grace=1000)
        assert await output_of(client, job_id) == b"ready\nasked\n"


async def test_what_cannot_be_paused_says_why(server):
    running = server()
    async with running.client() as client, running.client("user_bravo") as bravo:
        ended = await start(client, "exit 0")
        await output_of(client, ended)
        for change in (client.pause, client.resume):
            assert await refusal(change(ended)) == ("FAILED_PRECONDITION", "it has ended")
            assert await refusal(change("x")) == ("INVALID_ARGUMENT", "job_id")
            missing = "00000000-0000-4000-8000-000000000000"
            assert await refusal(change(missing)) == ("NOT_FOUND", missing)
        for change in (bravo.pause, bravo.resume):
            assert await refusal(change(ended)) == ("PERMISSION_DENIED", "mutate")


HINTS = ("it has ended", "job_id", "00000000-0000-4000-8000-000000000000", "mutate")


async def refusal(call):
    """Return the status of a refusal, and which of the hints its sentence has."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, next(h for h in HINTS if h in caught.value.details())


async def test_every_change_is_a_line_of_the_audit_log(server):
    running = server()
    async with running.client() as client:
        job_id = await start(client, "sleep 1000")
        await client.pause(job_id)
        await client.pause(job_id)
        await client.resume(job_id)
        await client.stop(job_id, grace=0)
    lines = map(json.loads, (running.state_dir / "audit.log").read_text().splitlines())
    events = [(line["event"], line["user"]) for line in lines if line.get("job_id") == job_id]
    assert events == [
        (event, "user_alpha") for event in ("started", "paused", "resumed", "stopping", "ended")
    ]


def test_the_command_line(server):
    running = server()
    job_id = running.cli("start", "sleep", "1000").stdout.decode().strip()
    paused = running.cli("pause", job_id)
    assert (paused.returncode, paused.stdout, paused.stderr) == (0, b"", b"")
    assert b"status     running (paused)\n" in running.cli("status", job_id).stdout
    assert json.loads(running.cli("status", "--format", "json", job_id).stdout)["job"]["paused"]
    assert running.cli("resume", job_id).returncode == 0
    assert b"status     running\n" in running.cli("status", job_id).stdout
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0
    refused = running.cli("pause", job_id)
    assert refused.returncode == 1
    assert f"cannot pause job {job_id}: " in refused.stderr.decode()
    assert "it has ended" in refused.stderr.decode()
