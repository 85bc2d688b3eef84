"""Pausing a job and letting it go on: its cgroup is frozen, and the kernel says when that is so.

Nothing is remembered: paused is what the kernel says (cgroup-v2.rst, "cgroup.freeze").
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from jobworker.cgroups.files import GONE
from jobworker.errors import FailedPrecondition, JobWorkerError
from jobworker.exhaustion import exhausted
from jobworker.job.processes import wait_frozen

if TYPE_CHECKING:
    from jobworker.cgroups import Cgroup

PATIENCE: Final = 3.0
"""Seconds that the kernel is given to freeze a job, or to let it go on.

It takes microseconds, except for a process that waits uninterruptibly in the kernel (for a disk or
a network file system that does not answer), which is frozen only after that.
"""


async def set_frozen(cgroup: Cgroup, *, frozen: bool) -> bool:
    """Freeze a job's cgroup or let it go on; return whether that has changed anything.

    A job that cannot be frozen within `PATIENCE` goes on. Raises FailedPrecondition (that, or no
    process is left) or ResourceExhausted.
    """
    what = f"{'pause' if frozen else 'resume'} job {cgroup.id}"
    try:
        was_frozen = is_frozen(cgroup)
        cgroup.freeze(frozen)
        try:
            await asyncio.wait_for(wait_frozen(cgroup, frozen=frozen), PATIENCE)
            _require_members(cgroup, what)
        except BaseException:
            if frozen and not was_frozen:
                cgroup.freeze(frozen=False)
            raise
    except TimeoutError:
        raise FailedPrecondition(f"cannot {what}: {_why_not(frozen=frozen)}") from None
    except OSError as error:
        raise _refused(what, error) from error
    return was_frozen != frozen


async def finish_freezing(cgroup: Cgroup) -> None:
    """Bring a freeze that an earlier server began, and did not live to see, to one of its two ends.

    Within `PATIENCE` the cgroup is frozen, or it goes on. Raises OSError.
    """
    if not cgroup.freezing() or is_frozen(cgroup):
        return
    try:
        await asyncio.wait_for(wait_frozen(cgroup, frozen=True), PATIENCE)
    except TimeoutError:
        cgroup.freeze(frozen=False)


def is_frozen(cgroup: Cgroup) -> bool:
    """Tell whether all processes of a cgroup are frozen, by whomever. Raises as `Cgroup.events`."""
    return cgroup.events().get("frozen") == 1


def _why_not(*, frozen: bool) -> str:
    if frozen:
        return (
            f"{PATIENCE:g} s were not enough to freeze all of its processes (one may be waiting "
            "for a disk or a network file system), so it goes on; try again later"
        )
    return (
        f"{PATIENCE:g} s later it is still frozen; look whether a cgroup above its own is "
        "(cgroup.freeze), or whether somebody freezes it again"
    )


def _refused(what: str, error: OSError) -> JobWorkerError:
    if error.errno in GONE:
        return _empty(what)
    return exhausted(what, error.errno) or FailedPrecondition(f"cannot {what}: {error}")


def _require_members(cgroup: Cgroup, what: str) -> None:
    if not cgroup.populated():
        raise _empty(what)


def _empty(what: str) -> FailedPrecondition:
    # It has ended, or its main process, as root, has left its cgroup.
    return FailedPrecondition(f"cannot {what}: no process is left in its cgroup")
