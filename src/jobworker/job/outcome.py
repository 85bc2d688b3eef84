"""What an exit record means for a job: the event, the reason, the status. Pure: no I/O."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from jobworker.job.state import Event, JobStatus, Reason, State, transition

if TYPE_CHECKING:
    from jobworker.job.record import JobRecord
    from jobworker.shim.wire import ExitRecord

_SHIM_DIED: Final = "its shim died before it, so its exit code is not known"
_HOST_RESTARTED: Final = "the host was restarted while it ran"


class Told(enum.Enum):
    """Why jobworker told a job to end."""

    STOP = "stop"
    TIMEOUT = "timeout"


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


def conclude_orphan(record: JobRecord, told: Told | None, boot_id: str) -> JobStatus:
    """Return the final status of a job whose parent died before it; `boot_id` is this boot's.

    One that jobworker had told to end is *stopped* all the same: that much is known.
    """
    state = record.status.state
    if told is not None:
        reason = Reason.STOPPED if told is Told.STOP else Reason.TIMED_OUT
        return JobStatus(transition(state, Event.STOP), reason=reason, message=_SHIM_DIED)
    restarted = record.process is not None and record.process.boot_id != boot_id
    return JobStatus(
        transition(state, Event.LOSE),
        reason=Reason.LOST,
        message=_HOST_RESTARTED if restarted else _SHIM_DIED,
    )


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
