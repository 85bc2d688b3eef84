"""How a program ends that stands for a job: the job's own exit status, or ours. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker.cli.render import status_line
from jobworker.rpc.resume import FINISHED
from jobworker.rpc.v1.jobworker_pb2 import Reason

if TYPE_CHECKING:
    from jobworker.rpc.v1.jobworker_pb2 import StatusDetail

TIMED_OUT: Final = 124
"""As timeout(1): the time to wait has passed."""
FAILED: Final = 125
"""As docker run and timeout(1): what went wrong is ours, not the job's."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
"""Both as in a shell (POSIX, 2.8.2)."""

_OWN_END: Final = (Reason.REASON_EXITED, Reason.REASON_SIGNALED)


def exit_status(detail: StatusDetail) -> int:
    """Return the exit status for a job: its exit code, 128 and its signal, or one of ours."""
    if detail.status not in FINISHED:
        return TIMED_OUT
    if detail.signal:
        return 128 + detail.signal
    return detail.exit_code if detail.exit_code >= 0 else FAILED


def remark(job_id: str, detail: StatusDetail) -> str:
    """Say what an exit status alone does not: why a job has ended that did not just end."""
    if detail.reason in _OWN_END and detail.status in FINISHED:
        return ""
    words = f"job {job_id}: {status_line(detail)}"
    return f"{words}; {detail.message}" if detail.message else words
