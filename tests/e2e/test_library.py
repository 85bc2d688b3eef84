"""The library without gRPC: ``async with job.Service(...) as service``."""

import asyncio
import os
import time
from dataclasses import replace

import pytest

from jobworker.cgroups import Limits
from jobworker.errors import (
    AlreadyLocked,
    CommandNotExecutable,
    CommandNotFound,
    ControllerUnavailable,
    InvalidArgument,
    JobNotFound,
    RequestConflict,
    ShuttingDown,
    UserNotFound,
    WorkingDirectoryUnusable,
)
from jobworker.job import JobSpec, Reason, Service, State, StopPolicy
from tests.support.processes import alive
from tests.support.waiting import PATIENCE


def sh(script, **options):
    return JobSpec(command="sh", args=("-c", script), **options)


@pytest.fixture
def places(tmp_path, cgroup_root):
    return {
        "log_dir": tmp_path / "log",
        "state_dir": tmp_path / "state",
        "run_dir": tmp_path / "run",
        "cgroup_root": cgroup_root,
    }


@pytest.fixture
async def service(places):
    async with Service(**places) as service:
        yield service


def left_behind(places):
    """Everything that a job leaves in the host, by the place it is in."""
    return [*places["log_dir"].iterdir()] + [
        path for path in (places["cgroup_root"] / "jobworker").iterdir() if path.is_dir()
    ]


async def test_a_job_runs_to_its_end(service):
    job = await service.start_job(sh("echo out; echo err >&2; exit 3"), owner="user_alpha")
    assert job.status.state is State.RUNNING or job.finished
    status = await job.wait()
    assert (status.state, status.exit_code, status.signal, status.reason) == (
        State.EXITED,
        3,
        None,
        Reason.EXITED,
    )
    assert await job.output() == b"out\nerr\n"
    assert job.record.owner == "user_alpha"
    assert job.record.created_at <= job.record.started_at <= job.record.ended_at
    assert job.record.usage["cpu_user_us"] >= 0


async def test_a_job_that_a_signal_ends_has_the_signal_and_no_exit_code(service):
    job = await service.start_job(sh("kill -SEGV $$"))
    status = await job.wait()
    assert (status.state, status.exit_code, status.signal, status.reason) == (
        State.EXITED,
        None,
        11,
        Reason.SIGNALED,
    )


async def test_an_exit_code_of_137_is_an_exit_code(service):
    status = await (await service.start_job(sh("exit 137"))).wait()
    assert (status.exit_code, status.signal, status.reason) == (137, None, Reason.EXITED)


async def test_a_stopped_job_is_stopped_whatever_it_died_of(service):
    polite = await service.start_job(sh("trap 'exit 0' TERM; echo ready; sleep 1000 & wait"))
    async with asyncio.timeout(PATIENCE):
        with polite.stream_output() as chunks:
            await anext(chunks)
    await service.stop_job(polite.id, grace=1000)
    assert (polite.status.state, polite.status.reason) == (State.STOPPED, Reason.STOPPED)
    assert polite.status.exit_code == 0


async def test_a_job_that_ignores_the_signal_is_killed_after_the_grace_period(service):
    job = await service.start_job(sh("trap '' TERM; echo ready; sleep 1000"))
    with job.stream_output() as chunks:
        await anext(chunks)
    await service.stop_job(job.id, grace=0.2)
    assert (job.status.state, job.status.signal) == (State.STOPPED, 9)


async def test_the_jobs_own_stop_policy_is_used(service):
    spec = sh(
        "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done",
        stop=StopPolicy(signal=2, grace=1000),
    )
    job = await service.start_job(spec)
    with job.stream_output() as chunks:
        await anext(chunks)
    await service.stop_job(job.id)
    assert job.status.exit_code == 5
    assert b"interrupted" in await job.output()


async def test_stopping_twice_at_once_and_again_later_is_one_stop(service):
    job = await service.start_job(sh("sleep 1000"))
    await asyncio.gather(*(service.stop_job(job.id) for _ in range(5)))
    ended = job.record
    await service.stop_job(job.id)
    assert (await service.fetch_job(job.id)).record == ended


async def test_stopping_a_job_that_ended_by_itself_changes_nothing(service):
    job = await service.start_job(sh("exit 4"))
    await job.wait()
    await service.stop_job(job.id)
    assert (job.status.state, job.status.exit_code) == (State.EXITED, 4)


async def test_a_job_whose_time_is_up_is_stopped_with_that_reason(service):
    job = await service.start_job(sh("sleep 1000", timeout=0.2))
    status = await job.wait()
    assert (status.state, status.reason) == (State.STOPPED, Reason.TIMED_OUT)


async def test_stop_empties_a_tree_that_left_the_session_and_ignores_the_signal(service, places):
    script = (
        "trap '' TERM; "
        "(trap '' TERM; setsid sh -c \"trap '' TERM; sleep 1000\" & ) ; "
        "setsid -f sh -c \"trap '' TERM; sleep 1000\"; echo ready; sleep 1000"
    )
    job = await service.start_job(sh(script))
    with job.stream_output() as chunks:
        await anext(chunks)
    directory = places["cgroup_root"] / "jobworker" / job.id
    pids = (directory / "cgroup.procs").read_text().split()
    await service.stop_job(job.id, grace=0)
    assert not directory.exists()
    assert [pid for pid in pids if alive(pid)] == []


async def test_what_a_job_leaves_behind_is_killed_before_its_end_is_known(service):
    script = (
        "setsid -f sh -c 'echo $$; exec sleep 1000'; until [ -s /dev/stdout ]; do sleep 0.01; done"
    )
    job = await service.start_job(sh(script))
    await job.wait()
    daemon = int(await job.output())
    assert not alive(daemon)


async def test_arguments_are_passed_as_they_are(service):
    arguments = ("$HOME", "a b", "*", "--help", "", "ü\n'\"")
    spec = JobSpec(command="printf", args=("<%s>", *arguments))
    job = await service.start_job(spec)
    await job.wait()
    assert (await job.output()).decode() == "".join(f"<{each}>" for each in arguments)


async def test_the_environment_is_minimal_and_what_was_asked_for(service):
    job = await service.start_job(JobSpec(command="env", env={"A": "1=2", "LANG": "de"}))
    await job.wait()
    lines = dict(line.split("=", 1) for line in (await job.output()).decode().splitlines())
    assert lines == {
        "A": "1=2",
        "HOME": "/root",
        "JOBWORKER_JOB_ID": job.id,
        "LANG": "de",
        "LOGNAME": "root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL": lines["SHELL"],
        "USER": "root",
    }


async def test_a_job_has_three_descriptors_a_session_and_default_signals(service):
    script = (
        "ls /proc/self/fd | wc -l; "  # ls itself has one more open
        "cut -d' ' -f5,6 /proc/$$/stat | tr ' ' '\\n' | sort -u | grep -cx $$; "
        "grep -E 'Sig(Blk|Ign)' /proc/self/status"
    )
    job = await service.start_job(sh(script))
    await job.wait()
    assert (await job.output()).decode().split() == [
        "4",
        "1",
        "SigBlk:",
        "0000000000000000",
        "SigIgn:",
        "0000000000000000",
    ]


async def test_standard_input_is_what_was_given_and_empty_otherwise(service):
    content = os.urandom(1024 * 1024)
    given = await service.start_job(JobSpec(command="cat", stdin=content))
    empty = await service.start_job(JobSpec(command="cat"))
    await given.wait()
    await empty.wait()
    assert await given.output() == content
    assert await empty.output() == b""


async def test_a_job_may_run_as_another_user_in_a_directory(service):
    script = "id -un; id -Gn; pwd; echo $HOME"
    job = await service.start_job(sh(script, user="nobody", working_directory="/tmp"))
    await job.wait()
    assert (await job.output()).decode().split() == ["nobody", "nogroup", "/tmp", "/nonexistent"]


@pytest.mark.parametrize(
    ("spec", "error", "named"),
    [
        (JobSpec(command="no-such-command"), CommandNotFound, "no-such-command"),
        (JobSpec(command="/no/such/command"), CommandNotFound, "/no/such/command"),
        (JobSpec(command="/etc/passwd"), CommandNotExecutable, "/etc/passwd"),
        (JobSpec(command="/etc"), CommandNotExecutable, "/etc"),
        (sh("", working_directory="/no/such/place"), WorkingDirectoryUnusable, "/no/such/place"),
        (sh("", working_directory="/etc/passwd"), WorkingDirectoryUnusable, "/etc/passwd"),
        (sh("", user="no-such-user"), UserNotFound, "no-such-user"),
        (sh("", user="nobody", working_directory="/root"), WorkingDirectoryUnusable, "/root"),
        (JobSpec(command=""), InvalidArgument, "command.name"),
        (JobSpec(command="true", args=("x" * 200_000,)), InvalidArgument, "command.args"),
    ],
)
async def test_what_cannot_start_says_so_and_leaves_nothing_behind(
    service, places, spec, error, named
):
    with pytest.raises(error, match=named):
        await service.start_job(spec)
    assert left_behind(places) == []
    assert service._store.unfinished() == []


async def test_a_limit_of_a_controller_that_is_elsewhere_names_it_and_the_remedy(service, places):
    controller = service.cgroups.controllers()["memory"]
    spec = sh("echo ran", limits=Limits(memory_max=64 * 1024 * 1024))
    if controller.available:
        job = await service.start_job(spec)
        assert job.record.limits.memory_max == 64 * 1024 * 1024
        await job.wait()
        return
    with pytest.raises(ControllerUnavailable, match=r"memory\.max.*memory controller") as caught:
        await service.start_job(spec)
    assert controller.bound_at in str(caught.value)
    assert "cgroup_no_v1=memory" in str(caught.value)
    assert left_behind(places) == []


async def test_an_unknown_job_and_a_malformed_id_differ(service):
    with pytest.raises(JobNotFound):
        await service.fetch_job("00000000-0000-4000-8000-000000000000")
    with pytest.raises(InvalidArgument):
        await service.fetch_job("../etc")


async def test_finished_jobs_are_found_again_and_cost_no_memory(service):
    job = await service.start_job(sh("echo x"))
    await job.wait()
    assert len(service._custody) == 0
    again = await service.fetch_job(job.id)
    assert again.record == job.record
    assert await again.output() == b"x\n"


async def test_many_tasks_may_start_stop_and_ask_at_once(service):
    async def one(number):
        job = await service.start_job(sh(f"echo {number}; exit {number}"))
        await service.fetch_job(job.id)
        status = await job.wait()
        return status.exit_code, await job.output()

    results = await asyncio.gather(*(one(number) for number in range(40)))
    assert results == [(number, f"{number}\n".encode()) for number in range(40)]


async def test_a_status_may_be_read_from_any_thread(service):
    job = await service.start_job(sh("sleep 0.3"))

    def watch():
        seen = set()
        while not job.finished:
            seen.add(job.status.state)
            time.sleep(0.001)  # without a pause it would keep others from the interpreter
        return seen | {job.status.state}

    assert await asyncio.to_thread(watch) <= {State.RUNNING, State.EXITED}
    assert job.status.state is State.EXITED


async def test_one_request_id_starts_one_job(service):
    spec = sh("echo $$; sleep 0.2", request_id="r")
    jobs = await asyncio.gather(*(service.start_job(spec, owner="a") for _ in range(5)))
    assert len({job.id for job in jobs}) == 1
    await jobs[0].wait()
    assert (await service.start_job(spec, owner="a")).id == jobs[0].id
    other = await service.start_job(spec, owner="b")
    assert other.id != jobs[0].id
    await other.wait()
    with pytest.raises(RequestConflict, match="'r'"):
        await service.start_job(replace(spec, args=("-c", "true")), owner="a")


async def test_a_failed_start_does_not_use_up_its_request_id(service):
    with pytest.raises(CommandNotFound):
        await service.start_job(JobSpec(command="no-such-command", request_id="r"))
    job = await service.start_job(JobSpec(command="true", request_id="r"))
    await job.wait()


async def test_a_caller_that_gives_up_does_not_undo_the_start(service):
    start = asyncio.create_task(service.start_job(sh("echo x", request_id="r")))
    await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    job = await service.start_job(sh("echo x", request_id="r"))
    await job.wait()
    assert await job.output() == b"x\n"


async def test_two_services_do_not_share_a_directory(service, places, tmp_path):
    with pytest.raises(AlreadyLocked, match=str(os.getpid())):
        async with Service(**places):
            pass
    with pytest.raises(AlreadyLocked):
        async with Service(**{**places, "run_dir": tmp_path / "run2"}):
            pass


async def test_leaving_lets_jobs_go_on_and_entering_finds_them(places, gate):
    async with Service(**places) as first:
        job = await first.start_job(sh(f"echo before; {gate.wait}; echo after; exit 6"))
    async with Service(**places) as second:
        again = await second.fetch_job(job.id)
        assert again.status.state is State.RUNNING
        gate.open()
        status = await again.wait()
        assert (status.state, status.exit_code) == (State.EXITED, 6)
        assert await again.output() == b"before\nafter\n"


async def test_leaving_ends_followers_and_refuses_new_jobs(places):
    async with Service(**places) as service:
        job = await service.start_job(sh("echo x; sleep 1000"))
        follower = job.stream_output()
        await anext(follower)
        waiting = asyncio.ensure_future(anext(follower))
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await service.start_job(sh("true"))
    async with Service(**places) as service:
        await service.stop_job(job.id, grace=0)
