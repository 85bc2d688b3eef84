"""Everything that is known of a job, as one immutable value. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec resolves the annotations
from dataclasses import dataclass, field
from typing import Final

from jobworker.cgroups import Limits
from jobworker.job.spec import JobSpec  # noqa: TC001 - msgspec resolves the annotations
from jobworker.job.state import JobStatus, State

PENDING: Final = JobStatus(State.PENDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process's identity across restarts of the server: a pid alone may be reused.

    `start_time` is in clock ticks since boot (field 22 of /proc/pid/stat, proc(5)).
    """

    boot_id: str
    pid: int
    start_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedStop:
    """A stop that was accepted, so that it is carried out whoever dies meanwhile.

    `kill_at` is when what is left is killed: seconds on CLOCK_BOOTTIME in the boot `boot_id`.
    """

    boot_id: str
    signal: int
    kill_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job at one moment. Times are seconds since the epoch; sizes are bytes.

    `limits` are those in force, as read back from the kernel; `output_max_bytes` is the cap on each
    output, None without one. `output_size`, `stderr_size` (if it is kept apart), `usage` (the keys
    of the wire contract's Usage) and `ended_at` are set once the job has finished.
    """

    id: str
    owner: str
    spec: JobSpec
    created_at: float
    status: JobStatus = PENDING
    limits: Limits = field(default_factory=Limits)
    warnings: tuple[str, ...] = ()
    process: Process | None = None
    stop: AcceptedStop | None = None
    started_at: float | None = None
    ended_at: float | None = None
    output_max_bytes: int | None = None
    output_size: int | None = None
    stderr_size: int | None = None
    usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the job has ended and nothing about it will change."""
        return self.status.state.finished

    def __post_init__(self) -> None:
        # A finished job has a final size, an unfinished one has none.
        if self.finished != (self.output_size is not None):
            raise ValueError(f"job {self.id} is {self.status} with output size {self.output_size}")
