"""Which files the kernel puts into a cgroup, and how it takes what is written. It does no I/O.

Only what jobworker reads and writes is here. Refusals are the kernel's: OSError with its errno.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CORE_FILES: Final = {
    "cgroup.controllers": "",
    "cgroup.subtree_control": "",
    "cgroup.procs": "",
    "cgroup.threads": "",
    "cgroup.max.depth": "max\n",
    "cgroup.max.descendants": "max\n",
    "cgroup.stat": "nr_descendants 0\nnr_dying_descendants 0\n",
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\n",
}
"""In every cgroup, whatever controllers it has."""

_NO_PRESSURE = (
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
)

NESTED_FILES: Final = {
    "cgroup.type": "domain\n",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cpu.pressure": _NO_PRESSURE,
    "memory.pressure": _NO_PRESSURE,
    "io.pressure": _NO_PRESSURE,
}
"""In every cgroup but the root."""

CONTROLLER_FILES: Final = {
    "cpu": {
        "cpu.stat": (
            "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\n"
            "throttled_usec 0\nnr_bursts 0\nburst_usec 0\n"
        ),
        "cpu.weight": "100\n",
        "cpu.max": "max 100000\n",
        "cpu.max.burst": "0\n",
    },
    "memory": {
        "memory.min": "0\n",
        "memory.low": "0\n",
        "memory.high": "max\n",
        "memory.max": "max\n",
        "memory.swap.max": "max\n",
        "memory.oom.group": "0\n",
        "memory.current": "0\n",
        "memory.peak": "0\n",
        "memory.swap.current": "0\n",
        "memory.swap.peak": "0\n",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    },
    "io": {
        "io.max": "",
        "io.weight": "default 100\n",
        "io.bfq.weight": "default 100\n",
        "io.stat": "",
    },
    "pids": {
        "pids.max": "max\n",
        "pids.current": "0\n",
        "pids.peak": "0\n",
        "pids.events": "max 0\n",
    },
}
"""In a cgroup whose parent has enabled the controller."""

KNOWN_CONTROLLERS: Final = frozenset({*CONTROLLER_FILES, "cpuset", "hugetlb", "misc", "rdma"})

WRITE_ONLY: Final = frozenset({"cgroup.kill"})

LONG_MAX: Final = 2**63 - 1
INT_MAX: Final = 2**31 - 1
_SUFFIXES: Final = {"k": 10, "m": 20, "g": 30, "t": 40}


@dataclass(frozen=True, slots=True)
class Host:
    """What a write is judged by, apart from the cgroup: page size in bytes, devices MAJ:MIN."""

    page_size: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    devices: frozenset[str] = frozenset({"254:0"})


def refuse(number: int, path: str = "") -> NoReturn:
    """Raise what the kernel answers."""
    raise OSError(number, os.strerror(number), path)


def taken(file: str, text: str, contents: Mapping[str, str], host: Host) -> str:
    """Return what a file of a controller holds after `text` was written to it.

    `contents` are the files of the cgroup as they are. Raises OSError if the kernel refuses.
    """
    if file not in _WRITERS:
        refuse(errno.EINVAL)
    return _WRITERS[file](text.strip(), contents, host)


def integer(text: str) -> int:
    """Read a decimal number as kstrtoint does."""
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        refuse(errno.EINVAL)
    return int(text)


def _size(text: str, _contents: Mapping[str, str], host: Host) -> str:
    """Take a size: memparse, whole pages, and "max" at the end of the range."""
    if text == "max":
        return "max\n"
    shift = _SUFFIXES.get(text[-1:].lower(), 0)
    size = integer(text[:-1] if shift else text) << shift
    if size < 0:
        refuse(errno.EINVAL)
    pages = min(size // host.page_size, LONG_MAX // host.page_size)
    if pages == LONG_MAX // host.page_size:
        return "max\n"
    return f"{pages * host.page_size}\n"


def _between(low: int, high: int, number: int) -> Callable[[str, Mapping[str, str], Host], str]:
    """Return a writer of a plain number that answers `number` to one out of range."""

    def write(text: str, _contents: Mapping[str, str], _host: Host) -> str:
        if not low <= integer(text) <= high:
            refuse(number)
        return f"{integer(text)}\n"

    return write


def _bound(text: str, _contents: Mapping[str, str], _host: Host) -> str:
    if text != "max" and not 0 <= integer(text) < INT_MAX:
        refuse(errno.ERANGE)
    return f"{text}\n"


def _cpu_max(text: str, contents: Mapping[str, str], _host: Host) -> str:
    fields = text.split()
    if not 1 <= len(fields) <= 2:
        refuse(errno.EINVAL)
    period = integer(fields[1]) if len(fields) == 2 else int(contents["cpu.max"].split()[1])
    if not 1000 <= period <= 1_000_000:
        refuse(errno.EINVAL)
    if fields[0] == "max":
        return f"max {period}\n"
    quota = integer(fields[0])
    if not 1000 <= quota < 2**44 or int(contents["cpu.max.burst"]) > quota:
        refuse(errno.EINVAL)
    return f"{quota} {period}\n"


def _cpu_max_burst(text: str, contents: Mapping[str, str], _host: Host) -> str:
    quota = contents["cpu.max"].split()[0]
    burst = integer(text)
    if burst < 0 or (quota != "max" and not (burst <= int(quota) and burst + int(quota) < 2**44)):
        refuse(errno.EINVAL)
    return f"{burst}\n"


def _weight(high: int, number: int) -> Callable[[str, Mapping[str, str], Host], str]:
    def write(text: str, _contents: Mapping[str, str], _host: Host) -> str:
        weight = integer(text.removeprefix("default "))
        if not 1 <= weight <= high:
            refuse(number)
        return f"default {weight}\n"

    return write


def _io_max(text: str, contents: Mapping[str, str], host: Host) -> str:
    lines = dict(line.split(" ", 1) for line in contents["io.max"].splitlines())
    device, _, rest = text.partition(" ")
    if ":" not in device:
        refuse(errno.EINVAL)
    if device not in host.devices:
        refuse(errno.ENODEV)
    values = dict.fromkeys(("rbps", "wbps", "riops", "wiops"), "max")
    values |= dict(pair.split("=", 1) for pair in lines.get(device, "").split())
    for pair in rest.split():
        key, equals, word = pair.partition("=")
        if key not in values or not equals:
            refuse(errno.EINVAL)
        if word != "max":
            number = integer(word)
            if number == 0:
                refuse(errno.ERANGE)
            word = "max" if key.endswith("iops") and number >= 2**32 - 1 else str(number)
        values[key] = word
    lines[device] = " ".join(f"{key}={value}" for key, value in values.items())
    if set(values.values()) == {"max"}:
        del lines[device]
    return "".join(f"{device} {line}\n" for device, line in lines.items())


def _pids_max(text: str, _contents: Mapping[str, str], _host: Host) -> str:
    if text == "max":
        return "max\n"
    if not 0 <= integer(text) <= 4 * 1024 * 1024:
        refuse(errno.EINVAL)
    return f"{integer(text)}\n"


_WRITERS: Final[Mapping[str, Callable[[str, Mapping[str, str], Host], str]]] = {
    "cgroup.max.depth": _bound,
    "cgroup.max.descendants": _bound,
    "memory.min": _size,
    "memory.low": _size,
    "memory.high": _size,
    "memory.max": _size,
    "memory.swap.max": _size,
    "memory.oom.group": _between(0, 1, errno.EINVAL),
    "cpu.weight": _between(1, 10_000, errno.ERANGE),
    "cpu.max": _cpu_max,
    "cpu.max.burst": _cpu_max_burst,
    "io.weight": _weight(10_000, errno.EINVAL),
    "io.bfq.weight": _weight(1000, errno.ERANGE),
    "io.max": _io_max,
    "pids.max": _pids_max,
}
