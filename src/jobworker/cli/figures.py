"""How samples of what a job uses are shown: one as a block, many as lines of a table. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker.cli import units
from jobworker.cli.render import layout, status_line, usage_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobworker.rpc.v1.jobworker_pb2 import StatsResponse

UNKNOWN: Final = "-"
_WIDTHS: Final = (8, 8, 10, 12, 12, 5, 0)
HEADER: Final = ("TIME", "CPU", "MEMORY", "READ", "WRITTEN", "PIDS", "STATUS")


def block(sample: StatsResponse, clock: Callable[[float], str]) -> str:
    """Lay one sample out; `clock` writes seconds since the epoch in the user's time zone."""
    memory = [_size(sample, "memory_current")] if sample.HasField("memory_current") else []
    if sample.memory_swap_current:
        memory.append(f"{_size(sample, 'memory_swap_current')} swap")
    processes = [str(sample.pids_current)] if sample.HasField("pids_current") else []
    return layout(
        [
            ("status", [status_line(sample.status, paused=sample.paused)]),
            ("time", [clock(_nanoseconds(sample) / 1e9)]),
            ("memory", memory),
            ("processes", processes),
            ("usage", usage_lines(sample.usage)),
        ]
    )


def header() -> str:
    """Return the names of the columns."""
    return _columns(HEADER)


def line(sample: StatsResponse, before: StatsResponse | None, clock: Callable[[float], str]) -> str:
    """Write one sample in a line: rates are those since the sample `before`, if there is one.

    CPU is in percent of one CPU. `clock` writes seconds since the epoch as a time of day.
    """
    read, written = (
        UNKNOWN if rate is None else f"{units.format_size(round(rate))}/s"
        for rate in (_rate(sample, before, f"io_{what}_bytes") for what in ("read", "write"))
    )
    processes = str(sample.pids_current) if sample.HasField("pids_current") else UNKNOWN
    return _columns(
        [
            clock(_nanoseconds(sample) / 1e9),
            _percent(_rate(sample, before, "cpu_user_us", "cpu_system_us")),
            _size(sample, "memory_current") if sample.HasField("memory_current") else UNKNOWN,
            read,
            written,
            processes,
            status_line(sample.status, paused=sample.paused),
        ]
    )


def _columns(cells: Iterable[str]) -> str:
    *numbers, status = (cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    return "  ".join([*numbers, status])


def _size(sample: StatsResponse, field: str) -> str:
    return units.format_size(getattr(sample, field))


def _percent(microseconds_a_second: float | None) -> str:
    if microseconds_a_second is None:
        return UNKNOWN
    return f"{microseconds_a_second / 10_000:.1f}%"


def _rate(sample: StatsResponse, before: StatsResponse | None, *fields: str) -> float | None:
    """Return how much the sum of the usage's `fields` has grown a second; None if unknown."""
    if before is None:
        return None
    nanoseconds = _nanoseconds(sample) - _nanoseconds(before)
    usages = (sample.usage, before.usage)
    if nanoseconds <= 0 or not all(usage.HasField(f) for usage in usages for f in fields):  # type: ignore[arg-type]
        return None
    now, then = (sum(int(getattr(usage, field)) for field in fields) for usage in usages)
    return max(now - then, 0) * 1e9 / nanoseconds


def _nanoseconds(sample: StatsResponse) -> int:
    return sample.time.ToNanoseconds()
