import pytest

from jobworker.errors import IllegalTransition
from jobworker.job.outcome import Told, conclude, conclude_orphan
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
        (None, State.LOST, Reason.LOST),
        (Told.STOP, State.STOPPED, Reason.STOPPED),
        (Told.TIMEOUT, State.STOPPED, Reason.TIMED_OUT),
    ],
)
def test_an_orphan_is_lost_unless_it_was_told_to_end(told, state, reason):
    status = conclude_orphan(RUNNING, told, "b")
    assert (status.state, status.reason, status.exit_code) == (state, reason, None)
    assert "shim" in status.message


def test_a_restart_of_the_host_is_given_as_the_reason():
    assert "host was restarted" in conclude_orphan(RUNNING, None, "another boot").message
