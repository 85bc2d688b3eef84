"""Turns the text of cgroup files into values. Pure: no I/O, and light enough for the shim.

The formats are those of cgroup-v2.rst ("Interface Files"). A text that is not what the kernel
document promises raises MalformedText, which carries the file and the offending line.
"""

from __future__ import annotations

MAX = 2**64 - 1
"""The value that means "max", no limit, in every size and count (the wire contract's too)."""


class MalformedText(ValueError):
    """Raised when a file of the kernel does not hold what its document promises."""

    def __init__(self, source: str, line: str) -> None:
        super().__init__(f"{source}: cannot understand {line!r}")


def value(text: str, source: str) -> int:
    """Read a single value: a number, or "max"."""
    word = text.strip()
    if word == "max":
        return MAX
    if not (word.isascii() and word.isdigit()):
        raise MalformedText(source, word)
    return int(word)


def values(text: str, source: str) -> list[int]:
    """Read one number a line, as in cgroup.procs."""
    return [value(line, source) for line in text.splitlines()]


def words(text: str) -> frozenset[str]:
    """Read a set of names, as in cgroup.controllers."""
    return frozenset(text.split())


def flat_keyed(text: str, source: str) -> dict[str, int]:
    """Read one "KEY VALUE" a line, as in cpu.stat."""
    result = {}
    for line in text.splitlines():
        key, space, number = line.partition(" ")
        if not space:
            raise MalformedText(source, line)
        result[key] = value(number, source)
    return result


def nested_keyed(text: str, source: str) -> dict[str, dict[str, str]]:
    """Read one "KEY SUBKEY=VALUE…" a line, as in io.max, io.stat and the pressure files.

    Values stay text: io.stat has keys of many owners, and not all of them are numbers. Kernels of
    the 5.x series forget the line's end after a device that has nothing to tell in io.stat, so a
    word without "=" begins the next key wherever it stands.
    """
    result: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        entry: dict[str, str] | None = None
        for word in line.split():
            subkey, equals, content = word.partition("=")
            if not equals:
                entry = result.setdefault(word, {})
            elif entry is None:
                raise MalformedText(source, line)
            else:
                entry[subkey] = content
    return result


def default_weight(text: str, source: str) -> int:
    """Read the line "default WEIGHT" of io.weight or io.bfq.weight."""
    for line in text.splitlines():
        key, _, weight = line.partition(" ")
        if key == "default":
            return value(weight, source)
    raise MalformedText(source, text)


def cpu_max(text: str, source: str) -> tuple[int, int]:
    """Read "QUOTA PERIOD" of cpu.max: microseconds; the quota may be MAX."""
    fields = text.split()
    if len(fields) != 2:
        raise MalformedText(source, text)
    return value(fields[0], source), value(fields[1], source)


def stall_total(text: str, source: str) -> int | None:
    """Read the "some" total of a pressure file: microseconds (psi.rst, Linux 4.20)."""
    total = nested_keyed(text, source).get("some", {}).get("total")
    return None if total is None else value(total, source)


def io_totals(text: str, source: str) -> dict[str, int]:
    """Add up rbytes, wbytes, rios and wios of io.stat over all devices."""
    totals = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
    for entry in nested_keyed(text, source).values():
        for key in totals.keys() & entry.keys():
            totals[key] += value(entry[key], source)
    return totals
