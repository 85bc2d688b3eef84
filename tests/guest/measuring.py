"""Reading a job's cgroup, and measurements that a noisy host may spoil once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from jobworker.cgroups import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

MIB = 2**20
T = TypeVar("T")


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
