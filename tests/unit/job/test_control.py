"""Stopping, waiting for and signalling jobs, on a fake kernel and a fake shim."""

import asyncio
import signal
from dataclasses import fields, replace

import pytest

from jobworker.cgroups import MAX, Limits
from jobworker.errors import (
    CommandNotFound,
    FailedPrecondition,
    InvalidArgument,
    JobNotFound,
    RequestConflict,
    ShuttingDown,
)
from jobworker.job import JobSpec, Reason, State, StopPolicy
from jobworker.testing.shim import FakeShim
from tests.support.fake_host import FakeHost
from tests.support.waiting import PATIENCE, until

TRUE = JobSpec(command="true")
UNHEARD = signal.SIGURG
"""A signal that a process which does not care for it does not notice (signal(7))."""


class Host(FakeHost):
    """A host that keeps changes as they are told."""

    def on_change(self, change):
        self.changes.append(change)

    def forget_that_they_run(self):
        """Make the registry that of a server that died in the launch of its jobs."""
        self.registry(
            "UPDATE jobs SET state = 'pending', pid = NULL, boot_id = NULL, start_time = NULL, "
            "started_at = NULL"
        )


@pytest.fixture
def host(tmp_path):
    with FakeShim() as shim:
        yield Host(tmp_path, shim)


@pytest.fixture
async def service(host):
    async with host.service() as service:
        yield service


class HeldLaunch:
    """Holds up the next launch until it is let go, and then lets it succeed or fail."""

    def __init__(self, host):
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()
        client = host.shim.clients[-1]
        launch = client.launch

        async def held(*args, **fds):
            del client.launch
            self.reached.set()
            await self.let_go.wait()
            return await launch(*args, **fds)

        client.launch = held


async def pending(host, service):
    """Return a launch that is held up, the id of its job, and the task that starts it."""
    held = HeldLaunch(host)
    starting = asyncio.create_task(service.start_job(TRUE))
    await asyncio.wait_for(held.reached.wait(), PATIENCE)
    (job_id,) = service._starting._launches
    return held, job_id, starting


# Stopping


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, (signal.SIGINT, 7.0)),
        ({"signal": signal.SIGUSR1}, (signal.SIGUSR1, 7.0)),
        ({"grace": 1.5}, (signal.SIGINT, 1.5)),
        ({"signal": signal.SIGUSR1, "grace": 0.0}, (signal.SIGUSR1, 0.0)),
    ],
)
async def test_a_stop_overrides_what_it_gives_of_the_jobs_own_policy(host, service, given, sent):
    spec = replace(TRUE, stop=StopPolicy(signal=signal.SIGINT, grace=7.0))
    job = await service.start_job(spec)
    stopping = asyncio.create_task(service.stop_job(job.id, user="beta", **given))
    await until(lambda: host.shim.stops)
    assert host.shim.stops == [(job.id, *sent)]
    host.shim.end(job.id, signal=9, stopped=True)
    await stopping
    change = host.changes[1]
    assert (change.event, change.user, change.signal) == ("stopping", "beta", sent[0])


@pytest.mark.parametrize("signum", [-1, 65])
async def test_a_stop_with_what_is_no_signal_names_the_field(host, service, signum):
    job = await service.start_job(TRUE)
    with pytest.raises(InvalidArgument) as refusal:
        await asyncio.wait_for(service.stop_job(job.id, signal=signum), PATIENCE)
    assert refusal.value.field == "signal"
    assert host.shim.stops == []


async def test_all_who_stop_a_job_are_sent_and_get_one_answer(host, service):
    job = await service.start_job(TRUE)
    asked = [{"signal": 2}, {"signal": 15}, {"grace": 1.0}, {}]
    stops = [asyncio.create_task(service.stop_job(job.id, **each)) for each in asked]
    await until(lambda: len(host.shim.stops) == len(asked))
    assert {(signum, grace) for _, signum, grace in host.shim.stops} == {
        (2, 10.0),
        (15, 10.0),
        (15, 1.0),
    }
    host.shim.end(job.id, signal=2, stopped=True)
    records = [(await stop).record for stop in stops]
    assert all(record is records[0] for record in records)


async def test_a_stop_that_comes_too_late_tells_how_the_job_ended_by_itself(host, service):
    job = await service.start_job(TRUE)
    host.shim.hanging.add(job.id)
    stop = asyncio.create_task(service.stop_job(job.id))
    await asyncio.sleep(0)
    host.shim.end(job.id, exit_code=3)
    host.shim.hanging.clear()
    host.shim.disconnect()
    assert (await stop).status.exit_code == 3
    assert (await service.stop_job(job.id)).status.state is State.EXITED


async def test_a_stop_of_a_pending_job_waits_for_its_launch(host, service):
    held, job_id, starting = await pending(host, service)
    stopping = asyncio.create_task(service.stop_job(job_id, grace=0))
    for _ in range(10):
        await asyncio.sleep(0)
    assert host.shim.stops == []
    held.let_go.set()
    job = await starting
    await until(lambda: host.shim.stops)
    host.shim.end(job.id, signal=9, stopped=True)
    assert (await stopping).status.reason is Reason.STOPPED


async def test_a_stop_of_a_job_whose_launch_fails_says_that_there_is_none(host, service):
    held, job_id, starting = await pending(host, service)
    stopping = asyncio.create_task(service.stop_job(job_id))
    host.shim.refusal = CommandNotFound("no")
    held.let_go.set()
    with pytest.raises(CommandNotFound):
        await starting
    with pytest.raises(JobNotFound):
        await stopping


async def test_a_later_stop_does_not_put_the_kill_off_when_the_shim_dies(host, service):
    job = await service.start_job(TRUE)
    stops = [
        asyncio.create_task(service.stop_job(job.id, signal=UNHEARD, grace=grace))
        for grace in (0.2, 1000)
    ]
    await until(lambda: len(host.shim.stops) == 2)
    host.shim.die()
    await asyncio.wait_for(asyncio.gather(*stops), PATIENCE)
    assert host.shim.processes[job.id].wait() == -signal.SIGKILL
    assert job.status.reason is Reason.STOPPED


async def test_a_later_stop_may_bring_the_kill_of_an_orphan_nearer(host, service):
    job = await service.start_job(TRUE)
    host.shim.die()
    stops = [
        asyncio.create_task(service.stop_job(job.id, signal=UNHEARD, grace=grace))
        for grace in (1000, 0)
    ]
    await asyncio.wait_for(asyncio.gather(*stops), PATIENCE)
    assert host.shim.processes[job.id].wait() == -signal.SIGKILL


async def test_who_stops_a_job_is_told_when_the_service_is_left(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        stop = asyncio.create_task(service.stop_job(job.id))
        await until(lambda: host.shim.stops)
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(stop, PATIENCE)


# Waiting


async def test_a_thousand_wait_for_one_end(host, service):
    job = await service.start_job(TRUE)
    waits = [asyncio.create_task(service.wait_job(job.id, 600)) for _ in range(1000)]
    await asyncio.sleep(0)
    host.shim.end(job.id, exit_code=3)
    statuses = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE)
    assert all(status is job.status for status in statuses)
    assert job.status.exit_code == 3
    assert (await service.wait_job(job.id, 0)).exit_code == 3


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_who_waits_no_longer_gets_the_status_as_it_is(service, seconds):
    job = await service.start_job(TRUE)
    assert (await service.wait_job(job.id, seconds)).state is State.RUNNING


@pytest.mark.parametrize("seconds", [-1, float("nan"), 1e12])
async def test_a_time_that_nobody_can_wait_names_the_field(service, seconds):
    job = await service.start_job(TRUE)
    with pytest.raises(InvalidArgument) as refusal:
        await service.wait_job(job.id, seconds)
    assert refusal.value.field == "timeout"


async def test_a_pending_job_is_waited_for_to_its_end(host, service):
    held, job_id, starting = await pending(host, service)
    assert (await service.wait_job(job_id, 0)).state is State.PENDING
    waiting = asyncio.create_task(service.wait_job(job_id))
    await asyncio.sleep(0)
    held.let_go.set()
    await starting
    host.shim.end(job_id, exit_code=0)
    assert (await waiting).state is State.EXITED


async def test_who_waits_for_a_launch_that_fails_is_told(host, service):
    held, job_id, starting = await pending(host, service)
    waiting = asyncio.create_task(service.wait_job(job_id))
    await asyncio.sleep(0)
    host.shim.refusal = CommandNotFound("no")
    held.let_go.set()
    with pytest.raises(CommandNotFound):
        await starting
    with pytest.raises(JobNotFound):
        await asyncio.wait_for(waiting, PATIENCE)


async def test_who_waits_is_told_when_the_service_is_left(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        waits = [asyncio.create_task(service.wait_job(job.id)) for _ in range(3)]
        await asyncio.sleep(0)
    for wait in waits:
        with pytest.raises(ShuttingDown, match=job.id):
            await asyncio.wait_for(wait, PATIENCE)
    with pytest.raises(ShuttingDown):
        await job.wait()


async def test_who_goes_away_leaves_nothing_behind(host, service):
    job = await service.start_job(TRUE)
    waits = [asyncio.create_task(service.wait_job(job.id, 600)) for _ in range(10)]
    await asyncio.sleep(0)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert not job._settled._waiters


# Signals


async def test_the_main_process_is_signalled_and_it_is_said_who_wanted_it(host, service):
    job = await service.start_job(TRUE)
    await service.signal_job(job.id, signal.SIGUSR1, user="beta")
    assert host.shim.processes[job.id].wait() == -signal.SIGUSR1
    change = host.changes[-1]
    assert (change.event, change.user, change.signal) == ("signaled", "beta", signal.SIGUSR1)


async def test_an_orphan_is_signalled(host, service):
    job = await service.start_job(TRUE)
    host.shim.die()
    await until(lambda: service._custody._orphans)
    await service.signal_job(job.id, signal.SIGUSR1)
    assert host.shim.processes[job.id].wait() == -signal.SIGUSR1


async def test_a_job_of_an_earlier_server_is_signalled(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    async with host.service() as service:
        await service.signal_job(job.id, signal.SIGUSR1)
    assert host.shim.processes[job.id].wait() == -signal.SIGUSR1


async def test_a_pending_job_is_signalled_once_it_runs(host, service):
    held, job_id, starting = await pending(host, service)
    signalling = asyncio.create_task(service.signal_job(job_id, signal.SIGUSR1))
    held.let_go.set()
    await starting
    await signalling
    assert host.shim.processes[job_id].wait() == -signal.SIGUSR1


@pytest.mark.parametrize("signum", [-1, 0, 65])
@pytest.mark.parametrize("all_processes", [False, True])
async def test_what_is_no_signal_names_the_field(host, service, signum, all_processes):
    job = await service.start_job(TRUE)
    with pytest.raises(InvalidArgument) as refusal:
        await service.signal_job(job.id, signum, all_processes=all_processes)
    assert refusal.value.field == "signal"
    assert [change.event for change in host.changes] == ["started"]


@pytest.mark.parametrize("all_processes", [False, True])
async def test_a_finished_job_cannot_be_signalled(host, service, all_processes):
    job = await service.start_job(TRUE)
    host.shim.end(job.id, exit_code=0)
    with pytest.raises(FailedPrecondition, match=f"cannot signal job {job.id}: it has ended"):
        await service.signal_job(job.id, 15, all_processes=all_processes)
    assert [change.event for change in host.changes] == ["started", "ended"]


async def test_a_main_process_that_was_reaped_cannot_be_signalled(host, service):
    job = await service.start_job(TRUE)
    host.shim.kill(job.id)
    with pytest.raises(FailedPrecondition, match="its main process has ended"):
        await service.signal_job(job.id, 15)
    with pytest.raises(FailedPrecondition, match="no process is left"):
        await service.signal_job(job.id, 15, all_processes=True)


async def test_a_main_process_that_nobody_knows_cannot_be_signalled_but_all_can(host, monkeypatch):
    sent = []
    async with host.service() as service:
        job = await service.start_job(TRUE)
        service.cgroups.place_in_cgroup(service.cgroups.cgroup(job.id), 4711)
    host.forget_that_they_run()
    host.shim.launched.clear()
    monkeypatch.setattr(
        "jobworker.cgroups.cgroup.Cgroup.signal",
        lambda _cgroup, *signums, main: sent.append((signums, main)) or 1,
    )
    async with host.service() as service:
        with pytest.raises(FailedPrecondition, match="--all"):
            await service.signal_job(job.id, 10)
        await service.signal_job(job.id, 10, all_processes=True)
        assert sent == [((10,), None)]
        host.tree.exit(4711)
        await service.wait_job(job.id)


async def test_a_kernel_that_refuses_a_signal_is_no_internal_error(service, monkeypatch):
    job = await service.start_job(TRUE)

    def refuse(*_args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("jobworker.job.control.pidfd_send_signal", refuse)
    with pytest.raises(FailedPrecondition, match="not permitted"):
        await service.signal_job(job.id, 15)


async def test_a_service_that_is_being_left_sends_no_signal(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    with pytest.raises(ShuttingDown, match="cannot signal job"):
        await service.signal_job(job.id, 15)
    assert host.shim.processes[job.id].poll() is None


# Requests that are sent again

CHANGED = {
    "command": "false",
    "args": ("x",),
    "limits": Limits(memory_max=MAX),
    "env": {"A": "1"},
    "working_directory": "/tmp",
    "user": "root",
    "stdin": b"x",
    "timeout": 5.0,
    "stop": StopPolicy(grace=1.0),
    "name": "n",
    "labels": {"a": "b"},
    "output_max_bytes": 1 << 20,
    "split_stderr": True,
}


@pytest.mark.parametrize("field", [each.name for each in fields(JobSpec)])
async def test_a_request_that_differs_in_any_field_is_another(host, service, field):
    if field == "request_id":
        return
    first = replace(TRUE, request_id="r")
    other = replace(first, **{field: CHANGED[field]})
    job = await service.start_job(first, owner="a")
    with pytest.raises(RequestConflict, match="'r'"):
        await service.start_job(other, owner="a")
    host.shim.end(job.id, exit_code=0)
    with pytest.raises(RequestConflict):
        await service.start_job(other, owner="a")
    assert (await service.start_job(first, owner="a")).id == job.id


async def test_a_request_is_remembered_by_the_next_server_and_for_each_owner(host):
    spec = replace(TRUE, request_id="r", stdin=b"x")
    async with host.service() as service:
        job = await service.start_job(spec, owner="a")
    async with host.service() as service:
        assert (await service.start_job(spec, owner="a")).id == job.id
        assert (await service.start_job(spec, owner="b")).id != job.id
        host.shim.end(job.id, exit_code=0)
    async with host.service() as service:
        again = await service.start_job(spec, owner="a")
        assert (again.id, again.status.exit_code) == (job.id, 0)


async def test_fifty_at_once_are_one_launch(host, service):
    spec = replace(TRUE, request_id="r")
    jobs = await asyncio.gather(*(service.start_job(spec, owner="a") for _ in range(50)))
    assert len({job.id for job in jobs}) == 1
    assert len(host.shim.processes) == 1
