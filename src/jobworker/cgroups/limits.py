"""What a job may use, as one value, and how that becomes text in cgroup files. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX: Final = 2**64 - 1
"""The value that means "max", no limit, in every size and count (the wire contract's too)."""


@dataclass(frozen=True, slots=True)
class CpuMax:
    """A CPU bandwidth limit: `quota_us` of CPU time (or MAX) in each `period_us`."""

    quota_us: int
    period_us: int = 100_000


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """A limit for one block device; an empty `device` means all physical disks."""

    device: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A job's limits; None (or an empty tuple) leaves the kernel's default.

    Sizes are bytes, `cpu_burst_max` is microseconds, `io_max_*` are bytes or operations a second.
    """

    memory_min: int | None = None
    memory_low: int | None = None
    memory_high: int | None = None
    memory_max: int | None = None
    memory_swap_max: int | None = None
    memory_oom_group: bool | None = None
    cpu_weight: int | None = None
    cpu_max: CpuMax | None = None
    cpu_burst_max: int | None = None
    io_weight: int | None = None
    io_max_rbps: tuple[DeviceLimit, ...] = ()
    io_max_wbps: tuple[DeviceLimit, ...] = ()
    io_max_riops: tuple[DeviceLimit, ...] = ()
    io_max_wiops: tuple[DeviceLimit, ...] = ()
    pids_max: int | None = None
