"""What people write for CPUs, devices and signals, and how all values are shown. Pure.

Every parser raises ValueError with a sentence that names the value and what is accepted.
"""

from __future__ import annotations

import re
import signal
from fractions import Fraction
from typing import Final

from jobworker.units import (
    BINARY_PREFIXES,
    COUNTS,
    DURATIONS,
    MAX,
    NUMBER,
    SIZES,
    US,
    duration_parts,
    parse_count,
    parse_duration,
    parse_size,
    uint64,
)

__all__ = [
    "BURSTS",
    "COUNTS",
    "CPUS",
    "CPU_PERIOD_US",
    "DURATIONS",
    "MAX",
    "SIGNALS",
    "SIZES",
    "format_age",
    "format_count",
    "format_cpu_max",
    "format_duration",
    "format_signal",
    "format_size",
    "parse_burst",
    "parse_count",
    "parse_cpu_max",
    "parse_device_count",
    "parse_device_size",
    "parse_duration",
    "parse_offset",
    "parse_pair",
    "parse_signal",
    "parse_size",
    "parse_weight",
    "seconds_of_us",
]

BURSTS: Final = "a time such as 20ms or 500us"
CPUS: Final = "CPUs such as 1.5 or 150%, or a quota in a period such as 50ms/100ms"
SIGNALS: Final = "a signal such as TERM, SIGTERM, 15 or RTMIN+1"

CPU_PERIOD_US: Final = 100_000
"""The kernel's default period of cpu.max (cgroup-v2.rst, "CPU Interface Files")."""

_CPU_TIME_US: Final = (1_000, 1_000_000)
# kernel/sched/core.c: a quota and a period are at least 1 ms, a period is at most 1 s.

_REAL_TIME: Final = {
    **{f"SIGRTMIN+{n}": signal.SIGRTMIN + n for n in range(signal.SIGRTMAX - signal.SIGRTMIN + 1)},
    **{f"SIGRTMAX-{n}": signal.SIGRTMAX - n for n in range(signal.SIGRTMAX - signal.SIGRTMIN + 1)},
}
"""The names that bash has for signals without one of their own (signal(7), "Real-time signals")."""


def parse_weight(text: str) -> int:
    """Return a weight as cpu.weight and io.weight take it."""
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 10_000:
        raise ValueError(f"{text!r} is not a weight: a whole number from 1 to 10000")
    return int(text)


def parse_device_size(text: str) -> tuple[str, int]:
    """Read ``10M`` or ``/dev/vda:10M`` as a device ("" means all physical disks) and bytes."""
    device, value = _split_device(text)
    return device, parse_size(value)


def parse_device_count(text: str) -> tuple[str, int]:
    """Read ``500`` or ``/dev/vda:500`` as a device ("" means all physical disks) and a count."""
    device, value = _split_device(text)
    return device, parse_count(value)


def parse_burst(text: str) -> int:
    """Return microseconds; the unit must be written, because the kernel's own is not a second."""
    parts = duration_parts(text)
    if text != "0" and parts is None:
        raise ValueError(f"{text!r} is not {BURSTS}")
    return uint64(text, sum(parts or (), Fraction(0)))


def parse_cpu_max(text: str) -> tuple[int, int]:
    """Return the quota (or MAX) and the period, both in microseconds."""
    if text == "max":
        return MAX, CPU_PERIOD_US
    quota, slash, period = text.partition("/")
    if slash:
        quota_us = MAX if quota == "max" else _cpu_time(text, quota)
        period_us = _cpu_time(text, period)
        if period_us > _CPU_TIME_US[1]:
            raise ValueError(f"{text!r}: the period is longer than 1s")
        return quota_us, period_us
    if not re.fullmatch(NUMBER + "%?", text, re.ASCII):
        raise ValueError(f"{text!r} is not {CPUS}, or max")
    percent = text.endswith("%")
    cpus = Fraction(text.removesuffix("%")) / (100 if percent else 1)
    quota_us = uint64(text, cpus * CPU_PERIOD_US)
    if quota_us < _CPU_TIME_US[0]:
        raise ValueError(f"{text!r} is less than the kernel can enforce: 0.01 CPUs (1%)")
    return quota_us, CPU_PERIOD_US


def parse_signal(text: str) -> int:
    """Return the number of a Linux signal."""
    if re.fullmatch(r"[0-9]{1,3}", text, re.ASCII):
        number = int(text)
    else:
        name = text.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        number = _REAL_TIME.get(name, 0)
        if (known := signal.Signals.__members__.get(name)) is not None:
            number = known.value
    if not 1 <= number <= signal.SIGRTMAX:
        raise ValueError(f"{text!r} is not {SIGNALS}")
    return number


def parse_offset(text: str) -> int:
    """Return a number of bytes, written in full."""
    if not re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) or int(text) > MAX:
        raise ValueError(f"{text!r} is not a number of bytes")
    return int(text)


def parse_pair(text: str) -> tuple[str, str]:
    """Read ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def format_size(size: int) -> str:
    """Say bytes for people: ``512 MiB``, ``1.5 GiB``, ``1000 B``, ``max``."""
    if size == MAX:
        return "max"
    power = min(max(size.bit_length() - 1, 0) // 10, len(BINARY_PREFIXES))
    if not power:
        return f"{size} B"
    text = _decimal(Fraction(size, 1024**power), 1)
    if text == "1024" and power < len(BINARY_PREFIXES):
        power, text = power + 1, "1"
    return f"{text} {BINARY_PREFIXES[power - 1]}iB"


def format_count(count: int) -> str:
    """Say a count, with ``max`` for MAX."""
    return "max" if count == MAX else str(count)


def format_duration(seconds: float | Fraction) -> str:
    """Say a time so that `parse_duration` would read it: ``1h30m``, ``2.5s``, ``340ms``, ``0s``."""
    microseconds = round(Fraction(seconds) * US["s"])
    if microseconds < US["ms"]:
        return f"{microseconds}us" if microseconds else "0s"
    for unit, next_unit in (("ms", "s"), ("s", "m")):
        if microseconds < US[next_unit]:
            value = Fraction(microseconds, US[unit])
            return f"{_decimal(value, 2 if value < 100 else 0)}{unit}"
    whole = round(Fraction(microseconds, US["s"]))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    return "".join(f"{value}{unit}" for value, unit in parts if value)


def format_age(seconds: float) -> str:
    """Say how long ago, in the largest unit only; nothing for what is yet to come."""
    if seconds < 0:
        return ""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")):
        if seconds >= length:
            return f"{int(seconds // length)}{unit} ago"
    return "just now"


def seconds_of_us(microseconds: int) -> Fraction:
    """Return seconds."""
    return Fraction(microseconds, US["s"])


def format_cpu_max(quota_us: int, period_us: int) -> str:
    """Say a CPU limit: ``1.5 CPUs``, with the period where it is not the default, or ``max``."""
    if quota_us == MAX:
        return "max"
    period_us = period_us or CPU_PERIOD_US
    cpus = _decimal(Fraction(quota_us, period_us), 2)
    text = f"{cpus} CPU" if cpus == "1" else f"{cpus} CPUs"
    if period_us == CPU_PERIOD_US:
        return text
    quota, period = (format_duration(seconds_of_us(us)) for us in (quota_us, period_us))
    return f"{text} ({quota}/{period})"


def format_signal(number: int) -> str:
    """Say a signal's name, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        names = [name for name, value in _REAL_TIME.items() if value == number]
        return names[0] if names else f"signal {number}"


def _split_device(text: str) -> tuple[str, str]:
    device, colon, value = text.rpartition(":")
    if colon and not device:
        raise ValueError(f"{text!r} names no device before the colon")
    return device, value


def _cpu_time(text: str, part: str) -> int:
    parts = duration_parts(part)
    if parts is None:
        raise ValueError(f"{text!r} is not {CPUS}, or max")
    microseconds = uint64(text, sum(parts, Fraction(0)))
    if microseconds < _CPU_TIME_US[0]:
        raise ValueError(f"{text!r}: the kernel takes no quota or period below 1ms")
    return microseconds


def _decimal(value: Fraction, places: int) -> str:
    scaled = round(value * 10**places)
    whole, rest = divmod(scaled, 10**places)
    fraction = f"{rest:0{places}d}".rstrip("0") if places else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
