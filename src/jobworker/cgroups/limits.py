"""What a job may use, as one value, and how that becomes text in cgroup files. Pure: no I/O.

`TABLE` is the one place that knows which limit is kept in which file, how it is written, and how
it is read back. Formats and ranges are those of cgroup-v2.rst and of the kernel's source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jobworker.cgroups import parse
from jobworker.cgroups.parse import MAX
from jobworker.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "IO_MAX_LIMITS",
    "MAX",
    "TABLE",
    "CpuMax",
    "DeviceLimit",
    "Limits",
    "Row",
    "Setting",
    "holds",
    "read_back",
    "settings",
]

SMALLEST_PAGE: Final = 4096
"""Bytes; less than a page of memory is none at all, for the kernel rounds down."""
MAX_CPU_TIME: Final = 2**44 - 1
"""Microseconds: the most that quota and burst may be together (MAX_BW in kernel/sched/sched.h)."""
MAX_PIDS: Final = 4 * 1024 * 1024
"""PID_MAX_LIMIT of 64-bit kernels; pids.max takes no more, except "max"."""
DEFAULT_WEIGHT: Final = 100
DEFAULT_PERIOD: Final = 100_000

IO_MAX_LIMITS: Final = ("io_max_rbps", "io_max_wbps", "io_max_riops", "io_max_wiops")


@dataclass(frozen=True, slots=True)
class CpuMax:
    """A CPU bandwidth limit: `quota_us` of CPU time (or MAX) in each `period_us`."""

    quota_us: int
    period_us: int = DEFAULT_PERIOD


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

    def check(self) -> None:
        """Raise InvalidArgument, naming the field, for what no job could be started with.

        That is what the kernel refuses, and what it would take although nothing could run then:
        less than a page of memory, and no process at all. Whatever else the kernel takes is taken,
        even if it makes little sense: see `warnings`.
        """
        # 0 protects nothing (min, low) or forbids swapping: all of that can be meant.
        for name in ("memory_min", "memory_low", "memory_swap_max"):
            self._check_range(name, 0, MAX)
        # The kernel rounds down to pages.
        for name in ("memory_high", "memory_max"):
            self._check_range(name, SMALLEST_PAGE, MAX)
        for name in ("cpu_weight", "io_weight"):
            self._check_range(name, 1, 10_000)
        self._check_range("pids_max", 1, MAX_PIDS, or_max=True)
        self._check_cpu_max()
        for name in IO_MAX_LIMITS:
            _check_devices(name, getattr(self, name))

    def warnings(self) -> tuple[str, ...]:
        """Return advice: what the kernel will accept, but is hardly what was meant."""
        return tuple(self._warnings())

    def _check_range(self, name: str, low: int, high: int, *, or_max: bool = False) -> None:
        number = getattr(self, name)
        if number is None or (or_max and number == MAX):
            return
        if not low <= number <= high:
            bounds = f"at least {low}" if high == MAX else f"between {low} and {high}"
            raise InvalidArgument(f"limits.{name}", f"{number} is not {bounds}")

    def _check_cpu_max(self) -> None:
        quota = MAX if self.cpu_max is None else self.cpu_max.quota_us
        if self.cpu_max is not None:
            if not 1000 <= self.cpu_max.period_us <= 1_000_000:
                raise InvalidArgument(
                    "limits.cpu_max",
                    f"a period of {self.cpu_max.period_us} µs is not between 1 ms and 1 s",
                )
            if quota != MAX and not 1000 <= quota <= MAX_CPU_TIME:
                raise InvalidArgument(
                    "limits.cpu_max",
                    f"a quota of {quota} µs is not between 1 ms and {MAX_CPU_TIME} µs",
                )
        burst = self.cpu_burst_max
        if burst is None:
            return
        if burst and quota == MAX:
            raise InvalidArgument("limits.cpu_burst_max", "a burst needs a quota; set one too")
        if not 0 <= burst <= quota:
            raise InvalidArgument(
                "limits.cpu_burst_max", f"{burst} µs is not between 0 and the quota of {quota} µs"
            )
        if burst and burst + quota > MAX_CPU_TIME:
            raise InvalidArgument(
                "limits.cpu_burst_max", f"quota and burst are more than {MAX_CPU_TIME} µs together"
            )

    def _warnings(self) -> Iterator[str]:
        least, low, high, most = (
            getattr(self, f"memory_{name}") for name in ("min", "low", "high", "max")
        )
        cap = min((size for size in (high, most) if size is not None), default=MAX)
        if high not in (None, MAX) and most in (None, MAX):
            yield (
                "memory_high without memory_max: above it the job is slowed down, never stopped "
                "from growing"
            )
        if high not in (None, MAX) and most is not None and high > most:
            yield "memory_high is above memory_max and has no effect"
        if least is not None and low is not None and least > low:
            yield "memory_low is below memory_min and has no effect"
        for name, protection in (("memory_min", least), ("memory_low", low)):
            if protection is not None and protection > cap:
                yield f"{name} protects more than the job may use"


@dataclass(frozen=True, slots=True)
class Setting:
    """One text to write to one file, for the sake of one limit."""

    limit: str
    controller: str
    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """How one limit is kept in one file.

    `write` turns the limit into texts, one for each write(2); `read` turns the file's content into
    the limit, None (or an empty tuple) at the kernel's default; `same` compares a text that was
    written with the content read back, given the page size.
    """

    limit: str
    controller: str
    file: str
    needs: str
    write: Callable[[Any], tuple[str, ...]]
    read: Callable[[str, str], Any]
    same: Callable[[str, str, str, int], bool]


def settings(limits: Limits) -> tuple[Setting, ...]:
    """Return what to write, in the order to write it.

    io_weight yields two settings, for io.weight and io.bfq.weight: which of the files there are
    depends on the kernel, and either will do. Devices must have been resolved to MAJOR:MINOR.
    """
    return tuple(
        Setting(row.limit, row.controller, row.file, text)
        for row in TABLE
        if getattr(limits, row.limit) not in (None, ())
        for text in row.write(getattr(limits, row.limit))
    )


def holds(setting: Setting, content: str, page_size: int) -> bool:
    """Tell whether a file's `content`, read after the writing, says that a setting is in force.

    Raises MalformedText if the content is not understood.
    """
    return row_of(setting).same(setting.text, content, setting.file, page_size)


def read_back(read: Callable[[str], str | None]) -> Limits:
    """Return the limits in force: None where the kernel's default is, or has no such file.

    `read` gives a file's content, or None if there is no such file. Devices are MAJOR:MINOR. Where
    both io.weight and io.bfq.weight are there, io.weight speaks.
    """
    found: dict[str, Any] = {}
    for row in TABLE:
        content = read(row.file)
        if content is not None and row.limit not in found:
            found[row.limit] = row.read(content, row.file)
    return Limits(**found)


def row_of(setting: Setting) -> Row:
    """Return the row of the table that a setting came from."""
    return _ROWS[setting.limit, setting.file]


def to_bfq_weight(weight: int) -> int:
    """Map 1…10000 to BFQ's range of 1…1000, keeping the default of 100, as systemd does."""
    if weight <= DEFAULT_WEIGHT:
        return weight
    return DEFAULT_WEIGHT + (weight - DEFAULT_WEIGHT) // 11


def from_bfq_weight(weight: int) -> int:
    """Return the least weight that `to_bfq_weight` maps to `weight`."""
    if weight <= DEFAULT_WEIGHT:
        return weight
    return DEFAULT_WEIGHT + (weight - DEFAULT_WEIGHT) * 11


def _check_devices(name: str, limits: tuple[DeviceLimit, ...]) -> None:
    field = f"limits.{name}"
    seen: set[str] = set()
    for limit in limits:
        shown = limit.device or "all physical disks"
        if not 1 <= limit.value <= MAX:
            raise InvalidArgument(field, f"{limit.value} for {shown} is not at least 1")
        if limit.device in seen:
            raise InvalidArgument(field, f"{shown} is named twice")
        seen.add(limit.device)


def _number(number: int) -> str:
    return "max" if number == MAX else str(number)


def _plain(
    limit: str, controller: str, file: str, needs: str, *, default: int, size: bool = False
) -> Row:
    """Return the row of a file that holds a single value."""

    def read(content: str, source: str) -> int | None:
        number = parse.value(content, source)
        return None if number == default else number

    def same(text: str, content: str, source: str, page_size: int) -> bool:
        wanted = parse.value(text, source)
        if size:
            wanted = _whole_pages(wanted, page_size)
        return wanted == parse.value(content, source)

    return Row(limit, controller, file, needs, lambda number: (_number(number),), read, same)


def _whole_pages(size: int, page_size: int) -> int:
    """Return what the kernel keeps of a size.

    It counts pages, and calls a count at the end of a long's range "max" (mm/page_counter.c).
    """
    pages = size // page_size
    return MAX if pages >= (2**63 - 1) // page_size else pages * page_size


def _read_flag(content: str, source: str) -> bool | None:
    return True if parse.value(content, source) else None


def _same_flag(text: str, content: str, source: str, _page_size: int) -> bool:
    return parse.value(text, source) == parse.value(content, source)


def _write_cpu_max(limit: CpuMax) -> tuple[str, ...]:
    return (f"{_number(limit.quota_us)} {limit.period_us}",)


def _read_cpu_max(content: str, source: str) -> CpuMax | None:
    limit = CpuMax(*parse.cpu_max(content, source))
    return None if limit == CpuMax(MAX) else limit


def _same_cpu_max(text: str, content: str, source: str, _page_size: int) -> bool:
    return parse.cpu_max(text, source) == parse.cpu_max(content, source)


def _io_weight(
    file: str, needs: str, there: Callable[[int], int], back: Callable[[int], int]
) -> Row:
    """Return the row of a file that holds a default weight and exceptions for devices."""

    def write(weight: int) -> tuple[str, ...]:
        return (f"default {there(weight)}",)

    def read(content: str, source: str) -> int | None:
        weight = parse.default_weight(content, source)
        return None if weight == DEFAULT_WEIGHT else back(weight)

    def same(text: str, content: str, source: str, _page_size: int) -> bool:
        return parse.default_weight(text, source) == parse.default_weight(content, source)

    return Row("io_weight", "io", file, needs, write, read, same)


def _io_max(limit: str) -> Row:
    """Return the row of one key of io.max.

    A write names one device and leaves the keys it does not name as they are. A device that has no
    limit at all has no line. Operations end at 2³²-1, which reads "max" (block/blk-throttle.c).
    """
    key = limit.removeprefix("io_max_")
    ceiling = 2**32 - 1 if key.endswith("iops") else MAX

    def write(limits: tuple[DeviceLimit, ...]) -> tuple[str, ...]:
        return tuple(
            f"{device.device} {key}={'max' if device.value >= ceiling else device.value}"
            for device in limits
        )

    def read(content: str, source: str) -> tuple[DeviceLimit, ...]:
        numbers = (
            DeviceLimit(device, parse.value(entry.get(key, "max"), source))
            for device, entry in parse.nested_keyed(content, source).items()
        )
        return tuple(limit for limit in numbers if limit.value != MAX)

    def same(text: str, content: str, source: str, _page_size: int) -> bool:
        there = parse.nested_keyed(content, source)
        return all(
            there.get(device, {}).get(key, "max") == entry[key]
            for device, entry in parse.nested_keyed(text, source).items()
        )

    return Row(limit, "io", "io.max", "Linux 4.5 with CONFIG_BLK_DEV_THROTTLING", write, read, same)


TABLE: Final = (
    _plain("memory_min", "memory", "memory.min", "Linux 4.18", default=0, size=True),
    _plain("memory_low", "memory", "memory.low", "Linux 4.5", default=0, size=True),
    _plain("memory_high", "memory", "memory.high", "Linux 4.5", default=MAX, size=True),
    _plain("memory_max", "memory", "memory.max", "Linux 4.5", default=MAX, size=True),
    _plain(
        "memory_swap_max",
        "memory",
        "memory.swap.max",
        "Linux 4.5 with CONFIG_SWAP and swap accounting",
        default=MAX,
        size=True,
    ),
    Row(
        "memory_oom_group",
        "memory",
        "memory.oom.group",
        "Linux 4.19",
        lambda flag: ("1" if flag else "0",),
        _read_flag,
        _same_flag,
    ),
    _plain("cpu_weight", "cpu", "cpu.weight", "Linux 4.15", default=DEFAULT_WEIGHT),
    Row(
        "cpu_max",
        "cpu",
        "cpu.max",
        "Linux 4.15 with CONFIG_CFS_BANDWIDTH",
        _write_cpu_max,
        _read_cpu_max,
        _same_cpu_max,
    ),
    # After cpu.max: the kernel refuses a burst above the quota in force.
    _plain("cpu_burst_max", "cpu", "cpu.max.burst", "Linux 5.14", default=0),
    _io_weight("io.weight", "Linux 5.4 with iocost", lambda w: w, lambda w: w),
    _io_weight("io.bfq.weight", "Linux 5.0 with the BFQ scheduler", to_bfq_weight, from_bfq_weight),
    *(_io_max(limit) for limit in IO_MAX_LIMITS),
    _plain("pids_max", "pids", "pids.max", "Linux 4.5", default=MAX),
)
"""Limit → file, in the order to write. `needs` says which kernel has the file."""

_ROWS: Final = {(row.limit, row.file): row for row in TABLE}
