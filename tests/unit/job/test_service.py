"""The Service on a fake kernel and a fake shim: what goes wrong at bad moments."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
from dataclasses import replace

import pytest

from jobworker.cgroups import MAX, Limits
from jobworker.errors import (
    CommandNotFound,
    FailedPrecondition,
    JobNotFound,
    LaunchFailed,
    LimitNotApplied,
    RequestConflict,
    ResourceExhausted,
    ShimUnavailable,
    ShuttingDown,
    Unavailable,
)
from jobworker.job import JobSpec, Reason, State, StopPolicy, processes
from jobworker.shim import record as exit_records
from jobworker.shim.note import EndNote, write_note
from jobworker.shim.proc import KEEPER_NAME, Stat, read_stat
from jobworker.testing.shim import FakeShim
from tests.support.fake_host import FakeHost
from tests.support.waiting import PATIENCE, until

TRUE = JobSpec(command="true")


class Host(FakeHost):
    """A host, and what is left there of jobs."""

    def left_behind(self):
        jobs = [name for name in self.tree.cgroups() if name.count("/") > 0]
        return [*self.log_dir.iterdir(), *jobs]

    def write_exit_record(self, job_id, **how):
        with contextlib.closing(_Directory(self.log_dir / job_id)) as directory:
            exit_records.write_exit_record(directory.fd, self.shim.record(job_id, **how))


class _Directory:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self):
        os.close(self.fd)


@pytest.fixture
def host(tmp_path, monkeypatch):
    # The kernel of the machine may know how a process ended that nobody has told us about.
    monkeypatch.setattr("jobworker.job.custody.pidfd_info.wait_status", lambda _pidfd: None)
    with FakeShim() as shim:
        yield Host(tmp_path, shim)


@pytest.fixture
async def service(host):
    async with host.service() as service:
        yield service


async def begun(condition):
    """Return once a task is in the midst of something that a look now and then could miss."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it has not begun")


# Starts that fail


async def test_a_refused_launch_leaves_nothing_behind(host, service):
    host.shim.refusal = CommandNotFound("no")
    with pytest.raises(CommandNotFound):
        await service.start_job(TRUE)
    assert host.left_behind() == []
    assert host.registry("SELECT * FROM jobs") == []
    assert host.changes == []


@pytest.mark.parametrize(
    ("operation", "pattern"), [("mkdir", "*jobworker/*-*"), ("write", "*memory.max")]
)
async def test_a_cgroup_that_cannot_be_made_leaves_nothing_behind(
    host, service, operation, pattern
):
    host.tree.fail(pattern, errno.ENOSPC, operation)
    with pytest.raises(Exception, match="cannot"):
        await service.start_job(replace(TRUE, limits=Limits(memory_max=1 << 20)))
    assert host.left_behind() == []
    assert host.registry("SELECT * FROM jobs") == []


async def test_an_empty_path_is_named(service):
    with pytest.raises(CommandNotFound, match="PATH is empty"):
        await service.start_job(replace(TRUE, env={"PATH": ""}))


async def test_a_start_whose_shim_died_is_unavailable_and_leaves_nothing(host, service):
    host.shim.refusal = ShimUnavailable("died")
    with pytest.raises(ShimUnavailable):
        await service.start_job(TRUE)
    assert host.left_behind() == []


async def test_a_start_that_cannot_be_cleaned_up_is_not_there_and_is_cleaned_up_by_the_retry(
    host, service
):
    spec = replace(TRUE, request_id="r")
    host.shim.refusal = CommandNotFound("no")
    store_delete = service._store.delete
    service._store.delete = failing(ResourceExhausted("disk full"))
    with pytest.raises(CommandNotFound):
        await service.start_job(spec)
    ((job_id,),) = host.registry("SELECT id FROM jobs")
    with pytest.raises(JobNotFound):
        await service.fetch_job(job_id)
    with pytest.raises(JobNotFound):
        await asyncio.wait_for(service.stop_job(job_id), PATIENCE)
    with pytest.raises(ResourceExhausted):
        await service.start_job(spec)
    service._store.delete = store_delete
    job = await service.start_job(spec)
    assert job.id != job_id
    assert job.status.state is State.RUNNING


def failing(error):
    def fail(*_args):
        raise error

    return fail


async def test_a_running_job_that_cannot_be_recorded_is_ended_and_forgotten(host, service):
    service._store.update = failing(ResourceExhausted("disk full"))
    with pytest.raises(ResourceExhausted):
        await service.start_job(TRUE)
    assert host.left_behind() == []
    # The shim tells of its end; nobody is interested.
    ((job_id, _),) = host.shim.launched.items()
    host.shim.end(job_id, signal=9)
    with pytest.raises(JobNotFound):
        await service.fetch_job(job_id)


# Requests


async def test_equal_specifications_are_one_request_whatever_their_types(host, service):
    one = await service.start_job(
        replace(TRUE, request_id="r", timeout=1, stop=StopPolicy(signal=signal.SIGTERM))
    )
    other = await service.start_job(
        replace(TRUE, request_id="r", timeout=1.0, stop=StopPolicy(signal=15))
    )
    assert other is one


@pytest.mark.parametrize(
    "change",
    [
        {"stdin": b"x"},
        {"args": ("x",)},
        {"env": {"A": "1"}},
        {"output_max_bytes": 1 << 20},
        {"split_stderr": True},
    ],
)
async def test_a_different_specification_is_a_conflict(service, change):
    await service.start_job(replace(TRUE, request_id="r"))
    with pytest.raises(RequestConflict):
        await service.start_job(replace(TRUE, request_id="r", **change))


async def test_a_cap_is_the_jobs_own_or_the_servers_default_as_it_was_at_the_start(host):
    spec = replace(TRUE, request_id="r")
    async with host.service(output_max_bytes=1 << 20) as service:
        job = await service.start_job(spec)
        own = await service.start_job(replace(TRUE, output_max_bytes=1 << 30))
        none = await service.start_job(replace(TRUE, output_max_bytes=2**64 - 1))
        caps = [each.record.output_max_bytes for each in (job, own, none)]
        assert caps == [1 << 20, 1 << 30, None]
        assert [host.shim.launched[j.id].output_max_bytes for j in (job, own, none)] == caps
    async with host.service(output_max_bytes=2 << 20) as service:
        assert (await service.fetch_job(job.id)).record.output_max_bytes == 1 << 20
        assert (await service.start_job(spec)).id == job.id


async def test_the_same_standard_input_is_the_same_request(service):
    spec = replace(TRUE, request_id="r", stdin=b"x" * 1000)
    assert (await service.start_job(spec)).id == (await service.start_job(spec)).id


# Changes


async def test_each_change_is_reported_once_also_if_the_caller_has_gone(host, service):
    start = asyncio.create_task(service.start_job(replace(TRUE, request_id="r"), owner="alpha"))
    await asyncio.sleep(0)
    start.cancel()
    await until(lambda: host.changes)
    job = await service.start_job(replace(TRUE, request_id="r"), owner="alpha")
    stop = asyncio.create_task(service.stop_job(job.id, user="beta"))
    await until(lambda: host.shim.stops)
    stop.cancel()
    host.shim.end(job.id, signal=15, stopped=True)
    await service.stop_job(job.id, user="gamma")
    assert host.changes == [
        ("started", job.id, "alpha"),
        ("stopping", job.id, "beta"),
        ("ended", job.id, ""),
    ]


# Ends


async def test_an_end_that_overtakes_the_answer_counts(host, service):
    launch = host.shim.clients[0].launch

    async def launch_and_end(description, **fds):
        launched = await launch(description, **fds)
        host.shim.end(description.job_id, exit_code=3)
        return launched

    host.shim.clients[0].launch = launch_and_end
    job = await service.start_job(TRUE)
    assert (job.status.state, job.status.exit_code) == (State.EXITED, 3)
    assert host.changes == [("started", job.id, ""), ("ended", job.id, "")]


async def test_an_end_that_cannot_be_recorded_is_known_until_it_can(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        service._store.finish = failing(ResourceExhausted("disk full"))
        host.write_exit_record(job.id, exit_code=5)
        host.shim.end(job.id, exit_code=5)
        assert (await service.fetch_job(job.id)).status.exit_code == 5
    async with host.service() as service:
        assert (await service.fetch_job(job.id)).status.exit_code == 5
        assert service._ledger.unwritten(job.id) is None
    assert host.registry("SELECT type FROM events") == [("started",), ("ended",)]


# Events


async def test_what_happens_to_jobs_is_told_in_order(host, service):
    job = await service.start_job(TRUE, owner="user_alpha")
    host.tree.write(f"{service.cgroups.cgroup(job.id).path}/cgroup.procs", "10")
    async with contextlib.aclosing(service.watch(job_id=job.id)) as watch:
        assert (await anext(watch)).event is None
        await service.update_limits(job.id, Limits(pids_max=9), user="user_bravo")
        await service.pause_job(job.id, user="user_alpha")
        await service.resume_job(job.id, user="user_alpha")
        stopping = asyncio.create_task(service.stop_job(job.id, user="user_carol"))
        await until(lambda: host.shim.stops)
        host.shim.end(job.id, signal=15, stopped=True)
        await stopping
        events = [(await anext(watch)).event for _ in range(5)]
    assert [(event.type, event.user) for event in events] == [
        ("limits updated", "user_bravo"),
        ("paused", "user_alpha"),
        ("resumed", "user_alpha"),
        ("stopping", "user_carol"),
        ("ended", ""),
    ]
    assert events[-1].status == job.status


async def test_a_start_that_fails_is_never_told(host, service):
    host.shim.refusal = CommandNotFound("no")
    with pytest.raises(CommandNotFound):
        await service.start_job(TRUE)
    assert host.registry("SELECT type FROM events") == []


async def test_events_of_a_dead_server_are_told_once_by_the_next(host):
    async with host.service() as service:
        async with contextlib.aclosing(service.watch()) as watch:
            token = (await anext(watch)).token
        jobs = [await service.start_job(TRUE) for _ in range(3)]
    # The second one ends while no server is there, the third one was not recorded as running.
    host.write_exit_record(jobs[1].id, exit_code=0)
    host.shim.kill(jobs[1].id)
    del host.shim.launched[jobs[1].id]
    host.registry("UPDATE jobs SET state = 'pending', pid = NULL WHERE id = ?", jobs[2].id)
    host.registry("DELETE FROM events WHERE job_id = ?", jobs[2].id)
    for _ in range(2):
        async with host.service():
            pass
    async with (
        host.service() as service,
        contextlib.aclosing(service.watch(token)) as watch,
        asyncio.timeout(PATIENCE),
    ):
        events = [(await anext(watch)).event for _ in range(4)]
    assert sorted((event.job_id, event.type) for event in events) == sorted(
        [
            (jobs[0].id, "started"),
            (jobs[1].id, "started"),
            (jobs[1].id, "ended"),
            (jobs[2].id, "started"),
        ]
    )
    assert len(host.registry("SELECT * FROM events")) == 4


async def test_a_removal_is_told_with_who_wanted_it_or_not_made(host, service):
    job = await service.start_job(TRUE)
    host.shim.end(job.id, exit_code=0)
    await job.wait()
    write = service._store.write

    def full(statement, values):
        if "INSERT INTO events" in statement:
            raise ResourceExhausted("disk full")
        return write(statement, values)

    service._store.write = full
    with pytest.raises(ResourceExhausted):
        await service.remove_job(job.id)
    assert (await service.fetch_job(job.id)).finished
    service._store.write = write
    async with (
        contextlib.aclosing(service.watch(job_id=job.id)) as watch,
        asyncio.timeout(PATIENCE),
    ):
        await anext(watch)
        await service.remove_job(job.id, user="user_bravo")
        event = (await anext(watch)).event
        assert (event.type, event.user, event.status) == ("removed", "user_bravo", job.status)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    assert [kind for kind, *_ in host.changes] == ["started", "ended", "removed"]


async def test_limits_that_a_dying_server_changed_are_told_by_the_next(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        service.cgroups.update_limits(job.id, Limits(pids_max=7))
    for _ in range(2):
        async with host.service():
            pass
    assert host.registry("SELECT type FROM events") == [("started",), ("limits updated",)]


async def test_stop_pause_and_resume_work_on_a_full_disk_and_the_end_is_told_later(host, service):
    service._ledger._first_retry = 0.02
    job = await service.start_job(TRUE)
    host.tree.write(f"{service.cgroups.cgroup(job.id).path}/cgroup.procs", "10")
    write = service._store.write
    service._store.write = failing(ResourceExhausted("disk full"))
    await service.pause_job(job.id)
    await service.resume_job(job.id)
    stopping = asyncio.create_task(service.stop_job(job.id))
    await until(lambda: host.shim.stops)
    host.shim.end(job.id, signal=15, stopped=True)
    assert (await stopping).status.state is State.STOPPED
    service._store.write = write
    await until(lambda: service._ledger.unwritten(job.id) is None)
    assert host.registry("SELECT type FROM events") == [("started",), ("ended",)]


async def test_an_end_that_could_not_be_recorded_is_tried_when_the_service_is_left(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        finish = service._store.finish
        service._store.finish = failing(ResourceExhausted("disk full"))
        host.shim.end(job.id, exit_code=5)
        assert job.finished
        service._store.finish = finish
    assert host.registry("SELECT type FROM events") == [("started",), ("ended",)]


async def test_who_watches_a_job_whose_start_fails_is_told(host, service):
    failing_now = asyncio.Event()

    async def fail(*_args, **_fds):
        await failing_now.wait()
        raise CommandNotFound("no")

    host.shim.clients[0].launch = fail
    starting = asyncio.create_task(service.start_job(TRUE))
    await until(lambda: host.registry("SELECT id FROM jobs"))
    ((job_id,),) = host.registry("SELECT id FROM jobs")
    async with (
        contextlib.aclosing(service.watch(job_id=job_id)) as watch,
        asyncio.timeout(PATIENCE),
    ):
        await anext(watch)
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        failing_now.set()
        with pytest.raises(JobNotFound):
            await waiting
    with pytest.raises(CommandNotFound):
        await starting


async def test_leaving_ends_every_watch(host):
    async with host.service() as service:
        watch = service.watch()
        await anext(watch)
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await waiting


# Shims that die


async def test_one_dead_shim_is_followed_by_one_connection(host, service):
    job = await service.start_job(TRUE)
    host.shim.unreachable = 2
    host.shim.die()
    await until(lambda: len(host.shim.connected) == 1)
    await until(lambda: len(service._custody._orphans) == 1)
    host.shim.kill(job.id)
    await job.wait()
    assert (job.status.state, job.status.reason) == (State.LOST, Reason.LOST)


async def test_a_shim_that_dies_while_it_is_asked_is_replaced_once(host, service):
    jobs = [await service.start_job(TRUE) for _ in range(3)]
    asked = []

    def die_at_the_second(job_id):
        asked.append(job_id)
        if len(asked) == 2:
            host.shim.disconnect()

    host.shim.before_attach = die_at_the_second
    host.shim.disconnect()
    await until(lambda: len(host.shim.clients) == 3 and len(asked) >= 5)
    await service.start_job(TRUE)
    assert len(host.shim.connected) == 1
    assert {job.status.state for job in jobs} == {State.RUNNING}
    assert len(service._custody._orphans) == 0


async def test_leaving_closes_every_connection(host):
    async with host.service() as service:
        await service.start_job(TRUE)
        host.shim.disconnect()
    assert host.shim.connected == []


async def test_a_stop_is_sent_again_when_the_connection_broke(host, service):
    job = await service.start_job(TRUE)
    stop = host.shim.clients[0].stop

    async def break_then_stop(*args, **kwargs):
        host.shim.disconnect()
        await stop(*args, **kwargs)

    host.shim.clients[0].stop = break_then_stop
    stopping = asyncio.create_task(service.stop_job(job.id, grace=7))
    await until(lambda: host.shim.stops)
    assert host.shim.stops == [(job.id, 15, 7)]
    host.shim.end(job.id, signal=15, stopped=True)
    assert (await stopping).status.state is State.STOPPED


async def test_a_stop_reaches_a_job_whose_shim_died_meanwhile(host, service):
    job = await service.start_job(TRUE)
    stopping = asyncio.create_task(service.stop_job(job.id, grace=1000))
    await until(lambda: host.shim.stops)
    host.shim.die()
    await until(lambda: service._custody._orphans)
    host.shim.kill(job.id)
    assert (await stopping).status.reason is Reason.STOPPED


async def test_a_stop_of_a_job_that_nobody_knows_does_not_wait_for_ever(host, service):
    job = await service.start_job(TRUE)
    host.shim.launched.clear()
    service._custody._holders.reconcile = forgetful
    with pytest.raises(Unavailable, match=job.id):
        await asyncio.wait_for(service.stop_job(job.id), PATIENCE)


async def forgetful(*_args):
    pass


async def test_an_orphans_time_limit_is_kept(host, service):
    job = await service.start_job(replace(TRUE, timeout=0.1, stop=StopPolicy(grace=0)))
    directory = service.cgroups.cgroup(job.id).path
    host.shim.die()
    await until(lambda: (f"{directory}/cgroup.kill", "1") in host.tree.writes)
    host.shim.kill(job.id)
    await job.wait()
    assert (job.status.state, job.status.reason) == (State.STOPPED, Reason.TIMED_OUT)


async def test_an_orphan_that_cannot_be_signalled_is_killed_all_the_same(host, service):
    job = await service.start_job(TRUE)
    directory = service.cgroups.cgroup(job.id).path
    host.tree.fail("*cgroup.procs", errno.EIO, "read")
    host.shim.die()
    stopping = asyncio.create_task(service.stop_job(job.id, grace=0.05))
    await until(lambda: (f"{directory}/cgroup.kill", "1") in host.tree.writes)
    host.shim.kill(job.id)
    assert (await stopping).status.reason is Reason.STOPPED


async def test_an_orphan_whose_cgroup_cannot_be_removed_has_ended_and_says_so(host, service):
    job = await service.start_job(TRUE)
    host.tree.fail(f"*{job.id}", errno.EBUSY, "rmdir")
    host.shim.die()
    await until(lambda: service._custody._orphans)
    host.shim.kill(job.id)
    await job.wait()
    assert job.status.state is State.LOST
    assert "cannot remove the cgroup" in job.status.message


async def test_the_kernel_may_tell_the_end_of_an_orphan(host, service, monkeypatch):
    job = await service.start_job(TRUE)
    host.shim.die()
    await until(lambda: service._custody._orphans)
    monkeypatch.setattr("jobworker.job.custody.pidfd_info.wait_status", lambda _pidfd: 7 << 8)
    host.shim.kill(job.id)
    await job.wait()
    assert (job.status.state, job.status.exit_code) == (State.EXITED, 7)


def leave_note(host, job, **how):
    process = job.record.process
    given = {"exit_code": 5, "ended_at": 4e9, "ended_boot": 1e9, **how}
    write_note(
        str(host.directory / "run"),
        EndNote(
            boot_id=processes.boot_id(), pid=process.pid, start_time=process.start_time, **given
        ),
    )


async def test_the_note_of_a_keeper_tells_the_end_of_an_orphan_and_is_removed(host, service):
    job = await service.start_job(TRUE)
    host.shim.die()
    await until(lambda: service._custody._orphans)
    leave_note(host, job)
    host.shim.kill(job.id)
    await job.wait()
    assert (job.status.state, job.status.exit_code) == (State.EXITED, 5)
    assert job.record.ended_at == 4e9
    assert list((host.directory / "run" / "reaped").iterdir()) == []


async def test_an_end_while_neither_server_nor_shim_lived_is_told_by_the_note(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    host.shim.die()
    host.shim.kill(job.id)
    leave_note(host, job)
    async with host.service() as service:
        job = await service.fetch_job(job.id)
        await job.wait()
        assert (job.status.state, job.status.exit_code) == (State.EXITED, 5)


@pytest.mark.parametrize(("ended_boot", "state"), [(0.0, State.EXITED), (1e9, State.STOPPED)])
async def test_an_orphan_that_ended_after_its_time_was_up_has_timed_out(host, ended_boot, state):
    async with host.service() as service:
        job = await service.start_job(replace(TRUE, timeout=1000))
    host.shim.die()
    host.shim.kill(job.id)
    leave_note(host, job, ended_boot=ended_boot)
    async with host.service() as service:
        job = await service.fetch_job(job.id)
        await job.wait()
        assert job.status.state is state


async def test_notes_that_nobody_needs_are_swept_when_a_server_starts(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        leave_note(host, job)
        host.shim.end(job.id, exit_code=0)
    async with host.service():
        assert list((host.directory / "run" / "reaped").iterdir()) == []


# Accepted stops


async def test_an_accepted_stop_is_passed_on_by_the_next_server(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        host.shim.hanging.add(job.id)
        stop = asyncio.create_task(service.stop_job(job.id, grace=1000))
        await until(lambda: job.record.stop is not None)
        stop.cancel()
    host.shim.hanging.clear()
    async with host.service() as service:
        await until(lambda: host.shim.stops)
        ((stopped, signum, grace),) = host.shim.stops
        assert (stopped, signum) == (job.id, signal.SIGTERM)
        assert 900 < grace <= 1000
        assert service._custody.is_stopping(await service.fetch_job(job.id))


async def test_a_stop_that_the_shim_has_heard_of_is_not_passed_on_again(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        stop = asyncio.create_task(service.stop_job(job.id, grace=1000))
        await until(lambda: host.shim.stops)
        stop.cancel()
    async with host.service() as service:
        await service.start_job(TRUE)
        assert len(host.shim.stops) == 1


async def test_an_accepted_stop_of_an_orphan_is_carried_out_by_the_next_server(host):
    """The signal is one that the process ignores; at the deadline, it is killed."""
    async with host.service() as service:
        job = await service.start_job(replace(TRUE, stop=StopPolicy(signal=signal.SIGURG)))
        host.shim.die()
        await until(lambda: service._custody._orphans)
        stop = asyncio.create_task(service.stop_job(job.id, grace=0.2))
        await until(lambda: job.record.stop is not None)
        stop.cancel()
    async with host.service() as service:
        job = await service.fetch_job(job.id)
        async with asyncio.timeout(PATIENCE):
            assert (await job.wait()).reason is Reason.STOPPED
    assert host.shim.processes[job.id].wait() == -signal.SIGKILL


async def test_a_job_that_ended_after_a_stop_that_an_earlier_server_accepted_was_stopped(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        stop = asyncio.create_task(service.stop_job(job.id, grace=1000))
        await until(lambda: host.shim.stops)
        stop.cancel()
    host.shim.die()
    host.shim.kill(job.id)
    leave_note(host, job, exit_code=0)
    async with host.service() as service:
        status = await (await service.fetch_job(job.id)).wait()
        assert (status.state, status.exit_code) == (State.STOPPED, 0)


async def test_a_stop_that_cannot_be_recorded_is_carried_out_all_the_same(host, service):
    job = await service.start_job(TRUE)
    service._store.update = failing(ResourceExhausted("disk full"))
    stop = asyncio.create_task(service.stop_job(job.id, grace=7))
    await until(lambda: host.shim.stops)
    stop.cancel()


# Starts whose shim dies


def die_in_launch(host, then):
    """Have the shim die within the next launch, after `then(job_id)`."""
    client = host.shim.clients[-1]

    async def launch(description, **_fds):
        then(description.job_id)
        host.shim.die()
        raise ShimUnavailable("the connection to the shim is lost")

    client.launch = launch


async def test_a_start_whose_shim_died_before_it_leaves_nothing_and_can_be_repeated(host, service):
    die_in_launch(host, lambda _job_id: None)
    spec = replace(TRUE, request_id="r")
    with pytest.raises(ShimUnavailable, match="nothing has been run"):
        await service.start_job(spec)
    assert host.left_behind() == []
    assert (await service.start_job(spec)).status.state is State.RUNNING


async def test_a_start_whose_shim_died_after_it_has_succeeded(host, service, monkeypatch):
    """The main process is found as the keeper's child in the job's cgroup."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as main:  # noqa: ASYNC220

        def start(job_id):
            service.cgroups.place_in_cgroup(service.cgroups.cgroup(job_id), main.pid)

        monkeypatch.setattr(processes, "parent_name", lambda _stat: KEEPER_NAME)
        die_in_launch(host, start)
        job = await service.start_job(TRUE)
        assert job.status.state is State.RUNNING
        assert job.record.process.pid == main.pid
        assert service._custody.main_process(job) is not None
        main.kill()
        main.wait()
        host.tree.exit(main.pid)
        await job.wait()
    assert host.changes[0] == ("started", job.id, "")


async def test_a_start_whose_shim_died_and_whose_command_has_ended_has_succeeded(host, service):
    def run(job_id):
        write_note(str(host.directory / "run"), note_of_job(job_id))

    die_in_launch(host, run)
    job = await service.start_job(TRUE)
    await job.wait()
    assert (job.status.state, job.status.exit_code) == (State.EXITED, 5)


async def test_a_start_whose_shim_died_and_whose_command_was_not_executed_has_failed(host, service):
    def fail(job_id):
        note = note_of_job(job_id)
        write_note(str(host.directory / "run"), note._replace(executed=False, exit_code=127))

    die_in_launch(host, fail)
    with pytest.raises(ShimUnavailable, match="nothing has been run"):
        await service.start_job(TRUE)
    assert host.left_behind() == []


def note_of_job(job_id):
    return EndNote(
        boot_id=processes.boot_id(),
        pid=4711,
        start_time=1,
        exit_code=5,
        cgroup=f"/jobworker/{job_id}",
        ended_at=4e9,
        ended_boot=1000.0,
    )


async def test_a_start_of_which_nothing_can_be_found_out_is_kept(host, service, monkeypatch):
    def unreachable_from_now_on(_job_id):
        monkeypatch.setattr("jobworker.job.custody.link.PATIENCE", 0.05)
        host.shim.unreachable = 10**6

    die_in_launch(host, unreachable_from_now_on)
    with pytest.raises(ShimUnavailable, match="same request_id"):
        await service.start_job(replace(TRUE, request_id="r"))
    (job,) = service._custody.jobs()
    assert job.status.state is State.PENDING
    host.shim.unreachable = 0
    await until(lambda: host.shim.connected and not service._custody.jobs())
    assert host.left_behind() == []


async def test_a_start_that_cannot_be_looked_after_now_is_not_undone(host, service, monkeypatch):
    """The command may run: to kill it and to say that nothing has been run would both be wrong."""

    async def out_of_descriptors(*_args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    look = "jobworker.job.custody.holders.find_main_process"
    monkeypatch.setattr(look, out_of_descriptors)
    die_in_launch(host, lambda _job_id: None)
    with pytest.raises(ShimUnavailable, match=r"whether the command runs: .*Too many open files"):
        await service.start_job(replace(TRUE, request_id="r"))
    (job,) = service._custody.jobs()
    assert job.status.state is State.PENDING
    assert f"jobworker/{job.id}" in host.tree.cgroups()
    assert (await service.start_job(replace(TRUE, request_id="r"))).id == job.id


async def test_a_start_whose_shim_died_when_it_had_written_the_end_has_succeeded(host, service):
    def run(job_id):
        host.shim.processes[job_id] = subprocess.Popen(["true"])
        host.write_exit_record(job_id, exit_code=5)

    die_in_launch(host, run)
    job = await service.start_job(TRUE)
    assert (job.status.state, job.status.exit_code) == (State.EXITED, 5)


@pytest.mark.parametrize("keeper_died", [True, False])
async def test_a_start_is_not_repeated_while_it_may_have_happened(host, service, keeper_died):
    """Nothing is left of the job: what that means, only the keeper's note of the shim tells."""
    host.shim.clients[-1].shim = SHIM
    if not keeper_died:
        note = note_of_job("none")._replace(pid=SHIM.pid, start_time=SHIM.start_time)
        die_in_launch(host, lambda _job_id: write_note(str(host.directory / "run"), note))
        with pytest.raises(ShimUnavailable, match="nothing has been run"):
            await service.start_job(TRUE)
    else:
        die_in_launch(host, lambda _job_id: None)
        job = await service.start_job(TRUE)
        await job.wait()
        assert job.status.state is State.LOST
        assert "main process is not known" in job.status.message


@pytest.fixture
def zombie():
    """A process that has ended, and that is reaped later."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield read_stat(process.pid)


async def test_a_dead_shim_that_no_keeper_waits_for_leaves_the_same_doubt(host, service, zombie):
    """Whoever is to reap it may take his time, and leaves no note."""
    host.shim.clients[-1].shim = zombie
    die_in_launch(host, lambda _job_id: None)
    job = await service.start_job(TRUE)
    await job.wait()
    assert job.status.state is State.LOST


SHIM = Stat(
    pid=2**22 - 1,
    name="",
    state="S",
    parent=1,
    session=1,
    flags=0,
    start_time=7,
    wait_status=0,
)
"""A shim that is gone by the time anybody looks for it."""


# Restarts of the host


async def test_a_job_that_ran_when_the_host_was_restarted_is_lost(host):
    async with host.service() as service:
        job = await service.start_job(replace(TRUE, timeout=1000))
    host.registry("UPDATE jobs SET boot_id = 'another'")
    host.shim.die()
    async with host.service() as service:
        job = await service.fetch_job(job.id)
        status = await job.wait()
        assert status.state is State.LOST
        assert "host was restarted" in status.message
    assert host.shim.processes[job.id].poll() is None


async def test_a_stop_that_was_accepted_before_the_host_was_restarted_kills_nothing(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        stop = asyncio.create_task(service.stop_job(job.id, grace=0))
        await until(lambda: host.shim.stops)
        stop.cancel()
    host.registry(
        """UPDATE jobs SET boot_id = 'another', stop = replace(stop, ?, 'another')""",
        processes.boot_id(),
    )
    host.shim.die()
    async with host.service() as service:
        assert (await (await service.fetch_job(job.id)).wait()).state is State.LOST
    assert host.shim.processes[job.id].poll() is None


# Changes of a running job


LOWER = Limits(memory_max=1 << 22, cpu_weight=50, pids_max=8)
"""Written as cpu.weight, pids.max, memory.max."""


async def test_limits_are_changed_and_what_is_not_given_stays(host, service):
    job = await service.start_job(replace(TRUE, limits=Limits(memory_high=1 << 21, pids_max=64)))
    changed = await service.update_limits(job.id, Limits(pids_max=8), user="beta")
    assert changed is job
    assert job.record.limits == Limits(memory_high=1 << 21, pids_max=8)
    assert job.record.limits == service.cgroups.cgroup(job.id).limits()
    assert job.record.warnings == job.record.limits.warnings() != ()
    assert host.changes[-1] == ("limits updated", job.id, "beta")


async def test_weight_that_no_disk_heeds_is_said_when_a_job_is_started_and_changed(service):
    job = await service.start_job(replace(TRUE, limits=Limits(io_weight=50)))
    (at_start,) = job.record.warnings
    await service.update_limits(job.id, Limits(io_weight=100))
    assert job.record.warnings == ()
    await service.update_limits(job.id, Limits(io_weight=60))
    (at_change,) = job.record.warnings
    assert at_start == at_change
    assert at_start.startswith("io_weight has no effect: ")


async def test_changed_limits_are_known_to_the_next_server(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        await service.update_limits(job.id, LOWER)
    async with host.service() as service:
        assert (await service.fetch_job(job.id)).record.limits == LOWER
        host.shim.end(job.id, exit_code=0)
        assert (await service.fetch_job(job.id)).record.limits == LOWER


async def test_limits_that_an_earlier_server_did_not_come_to_record_are_found_out(host):
    async with host.service() as service:
        job = await service.start_job(replace(TRUE, limits=Limits(pids_max=64)))
        service.cgroups.update_limits(job.id, Limits(pids_max=8, memory_high=1 << 21))
    async with host.service() as service:
        record = (await service.fetch_job(job.id)).record
        assert record.limits == Limits(pids_max=8, memory_high=1 << 21)
        assert record.warnings
    assert '"pids_max":8' in host.registry("SELECT limits FROM jobs")[0][0]


async def test_limits_that_cannot_be_read_keep_no_server_from_starting(host):
    async with host.service() as service:
        job = await service.start_job(replace(TRUE, limits=Limits(pids_max=64)))
    host.tree.fail("*/pids.max", errno.EIO, "read")
    async with host.service() as service:
        assert (await service.fetch_job(job.id)).record.limits == Limits(pids_max=64)


async def test_limits_that_cannot_be_applied_leave_record_and_kernel_as_they_were(host, service):
    job = await service.start_job(replace(TRUE, limits=Limits(pids_max=64)))
    host.tree.fail("*/memory.max", errno.EINVAL)
    with pytest.raises(LimitNotApplied, match=r"memory\.max"):
        await service.update_limits(job.id, LOWER)
    assert job.record.limits == Limits(pids_max=64)
    assert service.cgroups.cgroup(job.id).limits() == Limits(pids_max=64)
    assert [event for event, _, _ in host.changes] == ["started"]


async def test_limits_that_cannot_be_recorded_are_taken_back(host, service):
    job = await service.start_job(replace(TRUE, limits=Limits(pids_max=64)))
    service._store.update = failing(ResourceExhausted("disk full"))
    with pytest.raises(ResourceExhausted):
        await service.update_limits(job.id, LOWER)
    assert job.record.limits == Limits(pids_max=64)
    assert service.cgroups.cgroup(job.id).limits() == Limits(pids_max=64)


async def test_a_job_that_ended_while_its_limits_changed_keeps_the_record_of_its_end(host, service):
    job = await service.start_job(TRUE)
    update_limits = service.cgroups.update_limits

    def update_and_end(*arguments):
        changed = update_limits(*arguments)
        asyncio.run_coroutine_threadsafe(end(), loop).result(PATIENCE)
        return changed

    async def end():
        host.shim.end(job.id, exit_code=4)

    loop = asyncio.get_running_loop()
    service.cgroups.update_limits = update_and_end
    with pytest.raises(FailedPrecondition, match="has ended"):
        await service.update_limits(job.id, LOWER)
    assert (job.status.exit_code, job.record.limits) == (4, Limits())
    assert [event for event, _, _ in host.changes] == ["started", "ended"]


async def test_a_caller_that_goes_away_does_not_undo_a_change(host, service):
    job = await service.start_job(TRUE)
    changing = asyncio.create_task(service.update_limits(job.id, LOWER))
    await begun(lambda: service._turns.under_way)
    changing.cancel()
    await until(lambda: not service._turns.under_way)
    assert job.record.limits == LOWER


async def test_pause_and_resume_are_reported_once_each(host, service):
    job = await service.start_job(TRUE)
    host.tree.write(f"{service.cgroups.cgroup(job.id).path}/cgroup.procs", "10")
    for _ in range(2):
        await service.pause_job(job.id, user="beta")
        assert job.paused
    for _ in range(2):
        await service.resume_job(job.id, user="gamma")
        assert not job.paused
    assert host.changes[1:] == [("paused", job.id, "beta"), ("resumed", job.id, "gamma")]


async def test_a_pause_outlives_the_server(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        host.tree.write(f"{service.cgroups.cgroup(job.id).path}/cgroup.procs", "10")
        await service.pause_job(job.id)
    async with host.service() as service:
        job = await service.fetch_job(job.id)
        assert job.paused
        await service.resume_job(job.id)
        assert not job.paused


CHANGES = {
    "change the limits of": lambda service, job_id: service.update_limits(job_id, LOWER),
    "pause": lambda service, job_id: service.pause_job(job_id),
    "resume": lambda service, job_id: service.resume_job(job_id),
}


@pytest.mark.parametrize("doing", CHANGES)
async def test_a_finished_job_cannot_be_changed(host, service, doing):
    job = await service.start_job(TRUE)
    host.shim.end(job.id, exit_code=0)
    with pytest.raises(FailedPrecondition, match=f"cannot {doing} job {job.id}: it has ended"):
        await CHANGES[doing](service, job.id)


async def test_a_start_under_way_is_waited_for(host, service):
    starting = asyncio.create_task(service.start_job(replace(TRUE, limits=Limits(memory_max=MAX))))
    await begun(lambda: service._starting.under_way)
    (job_id,) = service._starting._launches
    await service.update_limits(job_id, LOWER)
    assert (await starting).record.limits == LOWER


@pytest.mark.parametrize("doing", CHANGES)
async def test_a_service_that_is_being_left_takes_no_change(host, doing):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    with pytest.raises(ShuttingDown, match=f"cannot {doing} job"):
        await CHANGES[doing](service, job.id)


async def test_leaving_lets_a_change_come_to_its_end(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        changing = asyncio.create_task(service.update_limits(job.id, LOWER))
        await begun(lambda: service._turns.under_way)
    await changing
    async with host.service() as service:
        assert (await service.fetch_job(job.id)).record.limits == LOWER


async def test_an_orphan_that_is_stopped_is_thawed(host, service):
    job = await service.start_job(TRUE)
    directory = service.cgroups.cgroup(job.id).path
    host.tree.write(f"{directory}/cgroup.freeze", "1")
    host.shim.die()
    stopping = asyncio.create_task(service.stop_job(job.id, grace=1000))
    await until(lambda: (f"{directory}/cgroup.freeze", "0") in host.tree.writes)
    host.shim.processes[job.id].kill()
    assert (await stopping).status.reason is Reason.STOPPED


async def test_an_orphan_that_cannot_be_thawed_is_killed_all_the_same(host, service):
    job = await service.start_job(TRUE)
    directory = service.cgroups.cgroup(job.id).path
    host.tree.fail("*cgroup.freeze", errno.EIO)
    host.shim.die()
    stopping = asyncio.create_task(service.stop_job(job.id, grace=0.05))
    await until(lambda: (f"{directory}/cgroup.kill", "1") in host.tree.writes)
    host.shim.processes[job.id].kill()
    assert (await stopping).status.reason is Reason.STOPPED


# The next server


async def test_a_job_of_an_earlier_server_is_taken_up_or_its_end_read(host):
    async with host.service() as service:
        running = await service.start_job(TRUE)
        ended = await service.start_job(TRUE)
    host.write_exit_record(ended.id, exit_code=9)
    host.shim.end(ended.id, exit_code=9)
    async with host.service() as service:
        assert (await service.fetch_job(running.id)).status.state is State.RUNNING
        assert (await service.fetch_job(ended.id)).status.exit_code == 9


async def test_a_launch_that_was_not_recorded_is_taken_up(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    host.registry("UPDATE jobs SET state = 'pending', pid = NULL, started_at = NULL")
    async with host.service() as service:
        again = await service.fetch_job(job.id)
        assert again.status.state is State.RUNNING
        assert again.record.process is not None


@pytest.mark.parametrize("damage", ["directory", "garbage", "empty"])
async def test_an_unreadable_exit_record_loses_that_job_and_no_other(host, damage):
    async with host.service() as service:
        bad, good = [await service.start_job(TRUE) for _ in range(2)]
    host.shim.launched.clear()
    for job in (bad, good):
        host.shim.kill(job.id)
    path = host.log_dir / bad.id / "exit.json"
    if damage == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"{garbage" if damage == "garbage" else b"")
    host.write_exit_record(good.id, exit_code=2)
    async with host.service() as service:
        assert (await service.fetch_job(good.id)).status.exit_code == 2
        lost = await service.fetch_job(bad.id)
        await lost.wait()
        assert lost.status.state is State.LOST
        assert "exit record" in lost.status.message


async def test_a_job_that_runs_is_not_ended_by_what_lies_in_its_directory(host):
    """A job that runs as root can write there whatever it likes."""
    async with host.service() as service:
        one, two = [await service.start_job(TRUE) for _ in range(2)]
    host.shim.launched.clear()
    host.write_exit_record(one.id, exit_code=0)
    (host.log_dir / two.id / "exit.json").mkdir()
    async with host.service() as service:
        for job in (one, two):
            assert (await service.fetch_job(job.id)).status.state is State.RUNNING
        host.shim.kill(two.id)
        lost = await service.fetch_job(two.id)
        await lost.wait()
        assert lost.status.state is State.LOST


async def test_an_exit_record_of_another_job_is_not_believed(host):
    async with host.service() as service:
        one, two = [await service.start_job(TRUE) for _ in range(2)]
    host.shim.launched.clear()
    host.shim.kill(one.id)
    record = host.shim.record(two.id, exit_code=42)
    with contextlib.closing(_Directory(host.log_dir / one.id)) as directory:
        exit_records.write_exit_record(directory.fd, record)
    async with host.service() as service:
        lost = await service.fetch_job(one.id)
        await lost.wait()
        assert lost.status.state is State.LOST
        assert (await service.fetch_job(two.id)).status.state is State.RUNNING


async def test_the_cgroup_that_a_dying_shim_left_is_removed(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    host.write_exit_record(job.id, exit_code=5)
    host.shim.end(job.id, exit_code=5)
    assert f"jobworker/{job.id}" in host.tree.cgroups()
    async with host.service() as service:
        assert (await service.fetch_job(job.id)).status.exit_code == 5
    assert f"jobworker/{job.id}" not in host.tree.cgroups()


async def test_a_start_whose_execve_failed_after_the_server_died_leaves_nothing(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
    host.registry("UPDATE jobs SET state = 'pending', pid = NULL, started_at = NULL")

    def fail(_job_id):
        raise LaunchFailed("no such command")

    host.shim.before_attach = fail
    async with host.service() as service:
        with pytest.raises(JobNotFound):
            await service.fetch_job(job.id)
    assert host.left_behind() == []


async def test_a_job_that_ran_before_it_was_recorded_is_lost_and_not_erased(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        service.cgroups.place_in_cgroup(service.cgroups.cgroup(job.id), 4711)
    host.registry("UPDATE jobs SET state = 'pending', pid = NULL, started_at = NULL")
    host.shim.launched.clear()
    (host.log_dir / job.id / "output").write_bytes(b"said")
    async with host.service() as service:
        again = await service.fetch_job(job.id)
        assert not again.finished
        host.tree.exit(4711)
        await again.wait()
        assert again.status.state is State.LOST
        assert await again.output() == b"said"


async def test_a_launch_that_hangs_keeps_no_server_from_starting(host, monkeypatch):
    monkeypatch.setattr("jobworker.job.custody.patience.RECONCILE", 0.05)
    async with host.service() as service:
        hung, good = [await service.start_job(TRUE) for _ in range(2)]
    host.shim.hanging.add(hung.id)
    async with host.service() as service:
        again = await service.fetch_job(good.id)
        await until(lambda: service._custody.main_process(again) is not None)
        assert (await service.fetch_job(hung.id)).status.state is State.RUNNING


async def test_a_shim_that_hangs_makes_calls_unavailable(host, service, monkeypatch):
    job = await service.start_job(TRUE)
    monkeypatch.setattr("jobworker.job.custody.patience.STOP", 0.05)
    monkeypatch.setattr("jobworker.job.custody.patience.LAUNCH", 0.05)
    host.shim.hanging.add("")
    with pytest.raises(ShimUnavailable, match="stop"):
        await service.stop_job(job.id)
    with pytest.raises(ShimUnavailable, match="execute"):
        await service.start_job(TRUE)
    assert [path.name for path in host.log_dir.iterdir()] == [job.id]


async def test_a_start_that_cannot_be_removed_keeps_no_server_from_starting(host):
    async with host.service() as service:
        stuck, good = [await service.start_job(TRUE) for _ in range(2)]
    host.registry("UPDATE jobs SET state = 'pending', pid = NULL WHERE id = ?", stuck.id)
    del host.shim.launched[stuck.id]
    (host.log_dir / stuck.id / "something else").touch()
    async with host.service() as service:
        assert (await service.fetch_job(good.id)).status.state is State.RUNNING
        with pytest.raises(JobNotFound):
            await service.fetch_job(stuck.id)


async def test_a_server_that_cannot_reach_a_shim_does_not_start_and_holds_no_lock(host):
    host.shim.unreachable = 1
    with pytest.raises(ShimUnavailable):
        async with host.service():
            pass
    async with host.service():
        pass


# Starts that are undone while somebody waits


def hold_a_failed_start(host, service):
    """Make the next launch fail with a process in its cgroup that does not end: pid 4711."""

    async def fail(*_args, **_fds):
        (job,) = service._custody.jobs()
        service.cgroups.place_in_cgroup(service.cgroups.cgroup(job.id), 4711)
        raise ShimUnavailable("it took too long")

    host.tree.ignore_writes("*cgroup.kill")
    host.shim.clients[0].launch = fail


async def test_a_failed_start_is_removed_once_however_many_want_it(host, service):
    hold_a_failed_start(host, service)
    spec = replace(TRUE, request_id="r")
    first = asyncio.create_task(service.start_job(spec))
    await until(lambda: service._abandoning.under_way)
    del host.shim.clients[0].launch
    second = asyncio.create_task(service.start_job(spec))
    await asyncio.sleep(0)
    host.tree.exit(4711)
    with pytest.raises(ShimUnavailable):
        await first
    assert (await second).status.state is State.RUNNING


async def test_a_failed_start_that_does_not_go_away_is_answered_all_the_same(
    host, service, monkeypatch
):
    monkeypatch.setattr("jobworker.job.starting._ABANDON_PATIENCE", 0.05)
    hold_a_failed_start(host, service)
    with pytest.raises(ShimUnavailable):
        await service.start_job(TRUE)
    host.tree.exit(4711)
    await until(lambda: host.left_behind() == [])


async def test_whoever_waits_for_a_job_that_was_never_started_is_told(host, monkeypatch):
    monkeypatch.setattr("jobworker.job.custody.patience.RECONCILE", 0.05)
    async with host.service() as service:
        job = await service.start_job(TRUE)
    host.registry("UPDATE jobs SET state = 'pending', pid = NULL, started_at = NULL")
    host.shim.hanging.add(job.id)
    async with host.service() as service:
        again = await service.fetch_job(job.id)
        with again.stream_output() as stream:
            follower = asyncio.ensure_future(anext(stream))
            waiter = asyncio.ensure_future(again.wait())
            await asyncio.sleep(0)
            await service._abandoning.abandon(again)
            for told in (follower, waiter):
                with pytest.raises(JobNotFound):
                    await asyncio.wait_for(told, PATIENCE)


async def test_a_call_that_waits_for_a_shim_is_unavailable_when_the_service_is_left(host):
    async with host.service() as service:
        job = await service.start_job(TRUE)
        host.shim.unreachable = 10**6
        host.shim.disconnect()
        stop = asyncio.create_task(service.stop_job(job.id))
        await until(lambda: job.record.stop is not None)
    with pytest.raises(ShimUnavailable):
        await stop


async def test_an_orphan_that_has_ended_by_itself_is_not_stopped_afterwards(host, service):
    job = await service.start_job(TRUE)
    service.cgroups.place_in_cgroup(service.cgroups.cgroup(job.id), 4711)
    host.tree.ignore_writes("*cgroup.kill")
    host.shim.die()
    await until(lambda: service._custody._orphans)
    host.shim.kill(job.id)
    await until(lambda: service._custody._orphans.get(job.id)._has_ended)
    stop = asyncio.create_task(service.stop_job(job.id, grace=0))
    await until(lambda: job.record.stop is not None)
    host.tree.exit(4711)
    assert (await stop).status.state is State.LOST


async def test_a_kernel_that_cannot_be_asked_is_no_internal_error(host, service):
    job = await service.start_job(TRUE)
    host.tree.fail("*cgroup.events", errno.EMFILE, "read")
    with pytest.raises(ResourceExhausted, match="paused"):
        _ = job.paused


# Pauses, stops and changes at bad moments


async def never(*_args, **_how):
    await asyncio.Event().wait()


async def start_with_a_process(host, service):
    job = await service.start_job(TRUE)
    cgroup = service.cgroups.cgroup(job.id)
    service.cgroups.place_in_cgroup(cgroup, 4711)
    return job, cgroup


async def test_a_job_that_is_being_stopped_is_not_paused(host, service):
    job, cgroup = await start_with_a_process(host, service)
    stop = asyncio.create_task(service.stop_job(job.id, grace=100))
    await until(lambda: host.shim.stops)
    with pytest.raises(FailedPrecondition, match="stopped"):
        await service.pause_job(job.id)
    assert not cgroup.freezing()
    host.shim.end(job.id, signal=15, stopped=True)
    await stop


async def test_a_pause_of_a_job_without_processes_leaves_nothing_frozen(host, service):
    job = await service.start_job(TRUE)
    with pytest.raises(FailedPrecondition, match="no process"):
        await service.pause_job(job.id)
    assert not service.cgroups.cgroup(job.id).freezing()


async def test_a_freeze_that_a_dying_server_began_comes_to_an_end(host, monkeypatch):
    monkeypatch.setattr("jobworker.job.freezer.PATIENCE", 0.05)
    async with host.service() as service:
        job, cgroup = await start_with_a_process(host, service)
        cgroup.freeze(frozen=True)
    # A process waits in the kernel: asked for, and not done.
    host.tree.answer("*cgroup.events", lambda: "populated 1\nfrozen 0\n")
    monkeypatch.setattr("jobworker.job.freezer.wait_frozen", never)
    async with host.service() as service:
        assert not service.cgroups.cgroup(job.id).freezing()


async def test_a_change_whose_caller_has_gone_before_its_turn_is_not_made(host, service):
    job, _ = await start_with_a_process(host, service)
    held, done = asyncio.Event(), []

    async def hold():
        await held.wait()

    async def change():
        done.append("made")

    first = asyncio.create_task(service._turns.run(job.id, hold))
    await asyncio.sleep(0)
    gone = asyncio.create_task(service._turns.run(job.id, change))
    await asyncio.sleep(0)
    gone.cancel()
    held.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await gone
    await service._turns.run(job.id, hold)
    assert done == []


async def test_a_job_whose_cgroup_is_gone_has_no_figures_and_says_so(host, service, monkeypatch):
    monkeypatch.setattr("jobworker.job.stats._END_PATIENCE", 0.05)
    job = await service.start_job(TRUE)
    service.cgroups.remove_cgroup(job.id)
    with pytest.raises(FailedPrecondition, match="goes on elsewhere"):
        await job.sample()


async def test_an_orphan_does_not_end_before_it_has_begun_by_a_clock_that_was_set_back(
    host, service, monkeypatch
):
    job = await service.start_job(TRUE)
    host.shim.die()
    await until(lambda: service._custody._orphans)
    monkeypatch.setattr("jobworker.job.custody.orphans.time.time", lambda: 1.0)
    host.shim.kill(job.id)
    await job.wait()
    assert job.record.ended_at == job.record.started_at
