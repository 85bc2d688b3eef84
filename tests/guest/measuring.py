"""A value for each limit, reading a job's cgroup, and measurements that a noisy host may spoil."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from jobworker.cgroups import CpuMax, DeviceLimit, Limits, parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 2**20
DISK = "/dev/vda"
"""The scratch disk."""
T = TypeVar("T")


def one_of_each(disk: str) -> dict[str, Limits]:
    """Return a value for each limit; a burst needs a quota."""
    some = (DeviceLimit(disk, 1000 * 4096),)
    return {
        "memory_min": Limits(memory_min=MIB),
        "memory_low": Limits(memory_low=MIB),
        "memory_high": Limits(memory_high=64 * MIB),
        "memory_max": Limits(memory_max=64 * MIB),
        "memory_swap_max": Limits(memory_swap_max=MIB),
        "memory_oom_group": Limits(memory_oom_group=True),
        "cpu_weight": Limits(cpu_weight=200),
        "cpu_max": Limits(cpu_max=CpuMax(50_000)),
        "cpu_burst_max": Limits(cpu_max=CpuMax(50_000), cpu_burst_max=10_000),
        "io_weight": Limits(io_weight=200),
        "io_max_rbps": Limits(io_max_rbps=some),
        "io_max_wbps": Limits(io_max_wbps=some),
        "io_max_riops": Limits(io_max_riops=some),
        "io_max_wiops": Limits(io_max_wiops=some),
        "pids_max": Limits(pids_max=100),
    }


def device_number(path: str) -> str:
    """Return a device in the form in which the kernel names it."""
    device = Path(path).stat().st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def number(file: Path) -> int:
    """Return the content of a file that holds a single value."""
    return parse.value(file.read_text(encoding="ascii"), str(file))


def counters(file: Path) -> dict[str, int]:
    """Return the content of a flat keyed file, such as cpu.stat."""
    return parse.flat_keyed(file.read_text(encoding="ascii"), str(file))


def cpu_seconds(cgroup: Path) -> float:
    """Return the CPU time that a cgroup has used."""
    return counters(cgroup / "cpu.stat")["usage_usec"] / 1e6


def within(measured: float, asked: float, tolerance: float) -> bool:
    """Tell whether a measurement is as asked, `tolerance` being a fraction of that."""
    return abs(measured - asked) <= tolerance * asked


@dataclass(frozen=True)
class Measurement(Generic[T]):
    """What was measured, whether it holds, and what to add to the figure."""

    value: T
    holds: bool
    remark: str = ""


async def measured(
    measure: Callable[[], Awaitable[T]], holds: Callable[[T], bool], shown: Callable[[T], str]
) -> Measurement[T]:
    """Measure, and once more if the first measurement does not hold; the remark says so."""
    first = await measure()
    if holds(first):
        return Measurement(first, holds=True)
    second = await measure()
    return Measurement(second, holds(second), f" (second attempt; the first: {shown(first)})")
