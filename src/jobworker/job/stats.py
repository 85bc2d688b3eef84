"""What a job uses: samples of a live one, and the final figures of one that has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping  # noqa: TC003 - part of a public dataclass
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from jobworker.errors import FailedPrecondition, InvalidArgument
from jobworker.exhaustion import exhausted
from jobworker.job.spec import check_seconds
from jobworker.job.state import JobStatus, State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobworker.cgroups import Cgroup
    from jobworker.errors import JobWorkerError
    from jobworker.job.job import Job

DEFAULT_INTERVAL: Final = 1.0
"""Seconds between two samples."""
_END_PATIENCE: Final = 3.0
"""Seconds between the end of a cgroup and the news of the job's."""
SHORTEST_INTERVAL: Final = 0.1
"""Seconds; what happens in less is noise, and each sample is fourteen files to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a job uses at a moment, `time` in seconds since the epoch.

    `usage` is what it has used until then, with the keys of the wire contract's Usage; `current`
    is what it has at that moment: memory_current, memory_swap_current (bytes) and pids_current.
    What the kernel does not report is absent. A job that has ended has nothing current; then
    `time` is when it ended, and `usage` is final.
    """

    time: float
    status: JobStatus
    usage: Mapping[str, int] = field(default_factory=dict)
    current: Mapping[str, int] = field(default_factory=dict)
    paused: bool = False


def check_interval(seconds: float) -> None:
    """Raise InvalidArgument unless samples can be taken at that interval."""
    check_seconds("interval", seconds)
    if seconds < SHORTEST_INTERVAL:
        raise InvalidArgument("interval", f"{seconds} s is less than {SHORTEST_INTERVAL} s")


async def sample(job: Job, cgroup: Cgroup) -> Sample:
    """Return what a job uses now. Raises FailedPrecondition or ResourceExhausted.

    If its cgroup is gone its end is about to be known, and that is waited for: then it is final.
    Only root can take the cgroup of a job away that goes on elsewhere.
    """
    if not job.finished:
        if (taken := _take(job.status, cgroup)) is not None:
            return taken
        try:
            await asyncio.wait_for(job.wait(), _END_PATIENCE)
        except TimeoutError:
            raise FailedPrecondition(
                f"cannot read what job {job.id} uses: its cgroup is gone, and it goes on elsewhere"
            ) from None
    return _final(job)


async def samples(job: Job, cgroup: Cgroup, interval: float) -> AsyncGenerator[Sample, None]:
    """Yield a sample now and at each `interval` (seconds), the last one when the job has ended.

    A consumer that takes longer misses samples instead of getting them late.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        taken = await sample(job, cgroup)
        yield taken
        if taken.status.state.finished:
            return
        due = max(due + interval, loop.time())
        try:
            async with asyncio.timeout_at(due):
                await job.wait()
        except TimeoutError:
            continue


def unreadable(what: str, error: OSError | ValueError) -> JobWorkerError:
    """Return the error to raise when the kernel's files do not say what they should."""
    number = error.errno if isinstance(error, OSError) else None
    return exhausted(what, number) or FailedPrecondition(f"cannot {what}: {error}")


def _take(status: JobStatus, cgroup: Cgroup) -> Sample | None:
    """Read a cgroup; None if it was gone before all of it was read."""
    if status.state is State.PENDING:
        return Sample(time=time.time(), status=status)
    try:
        usage, current = cgroup.usage(), cgroup.current()
        # Last: as long as this file is there, so were the others.
        events = cgroup.events()
    except (OSError, ValueError) as error:
        raise unreadable(f"read what job {cgroup.id} uses", error) from error
    if "frozen" not in events:
        return None
    return Sample(
        time=time.time(),
        status=status,
        usage=usage,
        current=current,
        paused=events["frozen"] == 1,
    )


def _final(job: Job) -> Sample:
    record = job.record
    return Sample(time=record.ended_at or 0.0, status=record.status, usage=record.usage)
