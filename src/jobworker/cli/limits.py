"""The flags that limit a job: one table of flag, unit and wire field. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from jobworker.cli import units
from jobworker.cli.options import SectionedOption, option
from jobworker.rpc.v1.jobworker_pb2 import CpuMax, DeviceLimit, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")

MEMORY: Final = "Memory limits (sizes: 1000, 512M, 1G, 1GiB, 1.5G, max; powers of 1024)"
CPU: Final = "CPU limits"
IO: Final = "I/O limits (VALUE for all physical disks, or DEVICE:VALUE; repeatable)"
OTHER: Final = "Other limits"


class Kind(NamedTuple):
    """A unit: how a value is read, and how it is shown."""

    metavar: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    per_device: bool = False


def _parse_cpu_max(text: str) -> CpuMax:
    quota_us, period_us = units.parse_cpu_max(text)
    return CpuMax(quota_us=quota_us, period_us=period_us)


def _parse_device(parse: Callable[[str], tuple[str, int]]) -> Callable[[str], DeviceLimit]:
    def read(text: str) -> DeviceLimit:
        device, value = parse(text)
        return DeviceLimit(device=device, value=value)

    return read


def _show_device(show: Callable[[int], str]) -> Callable[[DeviceLimit], str]:
    def say(limit: DeviceLimit) -> str:
        return f"{limit.device or 'all disks'} {show(limit.value)}"

    return say


def _rate(show: Callable[[int], str]) -> Callable[[int], str]:
    return lambda value: show(value) if value == units.MAX else f"{show(value)}/s"


SIZE: Final = Kind("SIZE", units.parse_size, units.format_size)
COUNT: Final = Kind("COUNT", units.parse_count, units.format_count)
WEIGHT: Final = Kind("1-10000", units.parse_weight, str)
BURST: Final = Kind(
    "TIME", units.parse_burst, lambda us: units.format_duration(units.seconds_of_us(us))
)
CPUS: Final = Kind(
    "CPUS", _parse_cpu_max, lambda limit: units.format_cpu_max(limit.quota_us, limit.period_us)
)
DEVICE_SIZE: Final = Kind(
    "[DEVICE:]SIZE",
    _parse_device(units.parse_device_size),
    _show_device(_rate(units.format_size)),
    per_device=True,
)
DEVICE_COUNT: Final = Kind(
    "[DEVICE:]COUNT",
    _parse_device(units.parse_device_count),
    _show_device(_rate(units.format_count)),
    per_device=True,
)
FLAG: Final = Kind("", bool, lambda value: "yes" if value else "no")


class Limit(NamedTuple):
    """One limit: its field in the wire contract's Limits, which names the flag too."""

    field: str
    kind: Kind
    section: str
    help: str

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return f"--{self.field.replace('_', '-')}"


LIMITS: Final = (
    Limit("memory_min", SIZE, MEMORY, "Never reclaim the job's memory below this."),
    Limit("memory_low", SIZE, MEMORY, "Avoid reclaiming memory below this."),
    Limit("memory_high", SIZE, MEMORY, "Slow the job down and reclaim above this."),
    Limit("memory_max", SIZE, MEMORY, "Hard limit: above it the job is out of memory."),
    Limit("memory_swap_max", SIZE, MEMORY, "Hard limit of swap."),
    Limit("memory_oom_group", FLAG, MEMORY, "Out of memory kills the whole job, not one process."),
    Limit("cpu_weight", WEIGHT, CPU, "Share of CPU time among busy jobs.  [default: 100]"),
    Limit("cpu_max", CPUS, CPU, "CPUs: 1.5 or 150%; or quota/period: 50ms/100ms; or max."),
    Limit("cpu_burst_max", BURST, CPU, "Unused quota to save up: 20ms, 500us."),
    Limit("io_weight", WEIGHT, IO, "Share of I/O among busy jobs.  [default: 100]"),
    Limit("io_max_rbps", DEVICE_SIZE, IO, "Bytes read a second: 10M, /dev/vda:10M."),
    Limit("io_max_wbps", DEVICE_SIZE, IO, "Bytes written a second."),
    Limit("io_max_riops", DEVICE_COUNT, IO, "Reads a second: 500, 10k, /dev/vda:500."),
    Limit("io_max_wiops", DEVICE_COUNT, IO, "Writes a second."),
    Limit("pids_max", COUNT, OTHER, "Processes and threads at a time."),
)


def limit_options(function: F) -> F:
    """Add the flag of every limit to a command."""
    for limit in reversed(LIMITS):
        function = _declare(limit)(function)
    return function


def _declare(limit: Limit) -> Callable[[F], F]:
    if limit.kind is FLAG:
        return click.option(
            # Both ways, because what is on can be changed to off.
            f"{limit.flag}/--no-{limit.flag.removeprefix('--')}",
            cls=SectionedOption,
            section=limit.section,
            default=None,
            help=limit.help,
        )
    return option(
        limit.flag,
        parse=limit.kind.parse,
        section=limit.section,
        metavar=limit.kind.metavar,
        multiple=limit.kind.per_device,
        help=limit.help,
    )


def from_flags(values: Mapping[str, Any]) -> Limits:
    """Build the message from the values of the flags; None and () are unset."""
    given = {limit.field: values.get(limit.field) for limit in LIMITS}
    return Limits(**{field: value for field, value in given.items() if value not in (None, ())})


def describe(limits: Limits) -> list[str]:
    """Say each limit that is set, for people, by the name of its flag."""
    lines = []
    for limit in LIMITS:
        name = limit.flag.removeprefix("--")
        if limit.kind.per_device:
            values = list(getattr(limits, limit.field))
        else:
            values = [getattr(limits, limit.field)] if limits.HasField(limit.field) else []  # type: ignore[arg-type]
        lines += [f"{name} {limit.kind.show(value)}" for value in values]
    return lines
