import pytest

from jobworker.errors import IllegalTransition
from jobworker.job.outcome import conclude, conclude_ending, conclude_unknown
from jobworker.job.record import JobRecord, Process
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State
from jobworker.shim.wire import ExitRecord


def end(**how):
    return ExitRecord(
        job_id="j", boot_id="b", pid=1, started_at=0, ended_at=1, runtime=1, output_size=0, **how
    )


@pytest.mark.parametrize(
    ("record", "state", "reason"),
    [
        (end(exit_code=0), State.EXITED, Reason.EXITED),
        (end(exit_code=137), State.EXITED, Reason.EXITED),
        (end(signal=9), State.EXITED, Reason.SIGNALED),
        (end(signal=9, usage={"oom_kills": 0}), State.EXITED, Reason.SIGNALED),
        (end(signal=9, usage={"oom_kills": 1}), State.EXITED, Reason.OUT_OF_MEMORY),
        (end(exit_code=137, usage={"oom_kills": 1}), State.EXITED, Reason.OUT_OF_MEMORY),
        (end(exit_code=0, usage={"oom_kills": 1}), State.EXITED, Reason.EXITED),
        (end(signal=15, stopped=True), State.STOPPED, Reason.STOPPED),
        (end(exit_code=0, stopped=True), State.STOPPED, Reason.STOPPED),
        (end(signal=9, stopped=True, usage={"oom_kills": 1}), State.STOPPED, Reason.STOPPED),
        (end(signal=15, timed_out=True), State.STOPPED, Reason.TIMED_OUT),
    ],
)
def test_an_exit_record_says_state_and_reason(record, state, reason):
    status = conclude(State.RUNNING, record)
    assert (status.state, status.reason) == (state, reason)
    assert (status.exit_code, status.signal) == (record.exit_code, record.signal)


def test_the_message_says_what_code_and_signal_do_not():
    assert conclude(State.RUNNING, end(signal=11)).message == ""
    status = conclude(State.RUNNING, end(signal=11, core_dumped=True, cgroup_error="busy"))
    assert status.message == "core dumped; busy"


def test_a_finished_job_does_not_end_again():
    with pytest.raises(IllegalTransition):
        conclude(State.EXITED, end(exit_code=0))


RUNNING = JobRecord(
    id="j",
    owner="",
    spec=JobSpec(command="true"),
    created_at=0,
    status=JobStatus(State.RUNNING),
    process=Process(boot_id="b", pid=1, start_time=1),
)


@pytest.mark.parametrize(
    ("told", "state", "reason"),
    [
        ({}, State.LOST, Reason.LOST),
        ({"stopped": True}, State.STOPPED, Reason.STOPPED),
        ({"timed_out": True}, State.STOPPED, Reason.TIMED_OUT),
    ],
)
def test_an_end_that_nobody_knows_is_lost_unless_the_job_was_told_to_end(told, state, reason):
    asked = {"stopped": False, "timed_out": False, **told}
    status = conclude_unknown(RUNNING, why="its shim died", **asked)
    assert (status.state, status.reason, status.exit_code) == (state, reason, None)
    assert status.message == "its shim died, so its exit code is not known"


@pytest.mark.parametrize(
    ("given", "state", "reason"),
    [
        ({"exit_code": 3}, State.EXITED, Reason.EXITED),
        ({"signal": 9}, State.EXITED, Reason.SIGNALED),
        ({"signal": 9, "usage": {"oom_kills": 1}}, State.EXITED, Reason.OUT_OF_MEMORY),
        ({"exit_code": 0, "stopped": True}, State.STOPPED, Reason.STOPPED),
        ({"signal": 15, "timed_out": True}, State.STOPPED, Reason.TIMED_OUT),
    ],
)
def test_an_end_that_another_than_the_shim_has_told_means_the_same(given, state, reason):
    nothing = {"exit_code": None, "signal": None, "core_dumped": False, "usage": {}}
    how = {**nothing, "stopped": False, "timed_out": False, **given}
    status = conclude_ending(RUNNING, **how)
    assert (status.state, status.reason) == (state, reason)
    assert (status.exit_code, status.signal) == (given.get("exit_code"), given.get("signal"))
