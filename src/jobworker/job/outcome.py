"""What an exit record means for a job: the event, the reason, the status. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker.job.state import Event, JobStatus, Reason, State, transition
from jobworker.shim.wire import ExitRecord

if TYPE_CHECKING:
    from jobworker.job.record import JobRecord


def conclude(state: State, record: ExitRecord) -> JobStatus:
    """Return the final status of a job in `state` whose end is `record`.

    Raises IllegalTransition if the job has finished already.
    """
    return JobStatus(
        state=transition(state, _event(record)),
        exit_code=record.exit_code,
        signal=record.signal,
        reason=_reason(record),
        message=_message(record),
    )


def conclude_ending(
    record: JobRecord,
    *,
    exit_code: int | None,
    signal: int | None,
    core_dumped: bool,
    stopped: bool,
    timed_out: bool,
    usage: dict[str, int],
) -> JobStatus:
    """Return the final status of a job whose shim had died, but whose end is known all the same."""
    begun = record.started_at or record.created_at
    end = ExitRecord(
        job_id=record.id,
        boot_id="",
        pid=1,
        exit_code=exit_code,
        signal=signal,
        core_dumped=core_dumped,
        stopped=stopped,
        timed_out=timed_out,
        started_at=begun,
        ended_at=begun,
        runtime=0.0,
        output_size=0,
        usage=usage,
    )
    return conclude(record.status.state, end)


def conclude_unknown(record: JobRecord, *, stopped: bool, timed_out: bool, why: str) -> JobStatus:
    """Return the final status of a job of whose end nobody can tell more than that it has ended.

    One that jobworker had told to end is *stopped* all the same: that much is known.
    """
    state = record.status.state
    message = f"{why}, so its exit code is not known"
    if stopped or timed_out:
        reason = Reason.TIMED_OUT if timed_out else Reason.STOPPED
        return JobStatus(transition(state, Event.STOP), reason=reason, message=message)
    return JobStatus(transition(state, Event.LOSE), reason=Reason.LOST, message=message)


def _event(record: ExitRecord) -> Event:
    if record.stopped or record.timed_out:
        return Event.STOP
    return Event.EXIT


def _reason(record: ExitRecord) -> Reason:
    """Say why the job ended.

    The kernel counts the processes it killed for want of memory in memory.events (cgroup-v2.rst);
    that explains a failure, be it the main process's own death or its exit code after a child was
    killed, but not a success, which is *exited* with the kills shown in the usage. An exit code of
    137 alone explains nothing.
    """
    if record.timed_out:
        return Reason.TIMED_OUT
    if record.stopped:
        return Reason.STOPPED
    if record.usage.get("oom_kills", 0) > 0 and record.exit_code != 0:
        return Reason.OUT_OF_MEMORY
    return Reason.EXITED if record.signal is None else Reason.SIGNALED


def _message(record: ExitRecord) -> str:
    core = "core dumped" if record.core_dumped else ""
    return "; ".join(part for part in (core, record.cgroup_error) if part)
