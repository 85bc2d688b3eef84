"""What people write for sizes, counts and times, on every command line and in every file. Pure.

Every parser raises ValueError with a sentence that names the value and what is accepted.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

MAX: Final = 2**64 - 1
"""The value that means "max", no limit, in every size and count of the wire contract."""

SIZES: Final = "a size such as 1000, 512M, 1G, 1GiB, 1.5G (K, M, G, T, P, E are powers of 1024)"
COUNTS: Final = "a count such as 500, 10k, 2M (k and M are powers of 1000)"
DURATIONS: Final = "a duration such as 90s, 5m, 1h30m, 500ms, or a number of seconds"

NUMBER: Final = r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
BINARY_PREFIXES: Final = "KMGTPE"
US: Final = {
    "us": 1,
    "µs": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
"""A unit of time → how many microseconds it is."""

_SIZE: Final = re.compile(NUMBER + r"(?:(?P<prefix>[KMGTPE])(?:iB)?|B)?", re.ASCII | re.IGNORECASE)
_COUNT: Final = re.compile(NUMBER + r"(?P<prefix>[kKM]?)", re.ASCII)
_DURATION_PART: Final = re.compile(NUMBER + r"(?P<unit>us|µs|ms|s|m|h|d)", re.ASCII)
_DECIMAL_PREFIXES: Final = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}
_LONGEST_US: Final = 315_576_000_000 * 1_000_000
# google/protobuf/duration.proto: at most 10,000 years.


def parse_size(text: str) -> int:
    """Return bytes; ``max`` is MAX. A fraction of a byte is dropped."""
    if text == "max":
        return MAX
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {SIZES}, or max")
    prefix = (match["prefix"] or "").upper()
    power = BINARY_PREFIXES.index(prefix) + 1 if prefix else 0
    return uint64(text, Fraction(match["number"]) * 1024**power)


def parse_count(text: str) -> int:
    """Return a whole number; ``max`` is MAX."""
    if text == "max":
        return MAX
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {COUNTS}, or max")
    count = Fraction(match["number"]) * _DECIMAL_PREFIXES[match["prefix"]]
    if count.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number")
    return uint64(text, count)


def parse_duration(text: str) -> Fraction:
    """Return seconds: ``1h30m``, ``500ms``, or a plain number of seconds."""
    if re.fullmatch(NUMBER, text, re.ASCII):
        microseconds = Fraction(text) * US["s"]
    else:
        parts = duration_parts(text)
        if parts is None:
            raise ValueError(f"{text!r} is not {DURATIONS}")
        microseconds = sum(parts, Fraction(0))
    if microseconds > _LONGEST_US:
        raise ValueError(f"{text!r} is longer than 10,000 years")
    return microseconds / US["s"]


def duration_parts(text: str) -> list[Fraction] | None:
    """Return microseconds for each part of ``1h30m``; None if it is not written like that."""
    parts = []
    position = 0
    while match := _DURATION_PART.match(text, position):
        parts.append(Fraction(match["number"]) * US[match["unit"]])
        position = match.end()
    return parts if parts and position == len(text) else None


def uint64(text: str, value: Fraction) -> int:
    """Return a value as the wire has it, without its fraction; MAX itself has a word of its own."""
    if value >= MAX:
        raise ValueError(f"{text!r} is too large; write max for no limit")
    return int(value)
