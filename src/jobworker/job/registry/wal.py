"""What a write-ahead log that is damaged looks like: SQLite itself takes damage for the log's end.

A log that merely ends early (its writer was killed) is sound: what is missing was never committed.
One in which a whole commit comes after a frame that does not add up is not. The format is that of
https://www.sqlite.org/fileformat2.html#the_write_ahead_log. Pure: no I/O.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
_MAGIC: Final = 0x377F0682
"""With the lowest bit set, checksums are over big-endian words."""
_FORMAT: Final = 3007000
_MASK: Final = 0xFFFFFFFF
_PAGE_SIZES: Final = frozenset(1 << power for power in range(9, 17))

_Sums = tuple[int, int]


class _Frame(NamedTuple):
    offset: int
    commits: bool
    salts: tuple[int, int]
    sums: _Sums
    data: memoryview
    """What the sums are over: the first 8 bytes of the header, and the page."""


def damage(log: bytes) -> int | None:
    """Return the offset of the first byte that is not sound, or None if the log can be used."""
    if len(log) < _HEADER.size:
        return None
    magic, version, page_size, _, *salts, sum1, sum2 = _HEADER.unpack_from(log)
    big = bool(magic & 1)
    if (
        magic & ~1 != _MAGIC
        or version != _FORMAT
        or page_size not in _PAGE_SIZES
        or _sums(log[: _HEADER.size - 8], (0, 0), big_endian=big) != (sum1, sum2)
    ):
        return 0 if any(log) else None
    expected: _Sums = (sum1, sum2)
    stored = expected
    broken: int | None = None
    for frame in _frames(log, page_size):
        ours = frame.salts == tuple(salts)
        if broken is None:
            sums = _sums(frame.data, expected, big_endian=big) if ours else None
            if sums == frame.sums:
                expected = frame.sums
            else:
                broken = frame.offset
        elif ours and frame.commits and _sums(frame.data, stored, big_endian=big) == frame.sums:
            return broken
        stored = frame.sums
    return None


def _frames(log: bytes, page_size: int) -> Iterator[_Frame]:
    view = memoryview(log)
    length = _FRAME.size + page_size
    for offset in range(_HEADER.size, len(log) - length + 1, length):
        _, size, salt1, salt2, sum1, sum2 = _FRAME.unpack_from(log, offset)
        head, page = offset + 8, offset + _FRAME.size
        data = memoryview(b"".join((view[offset:head], view[page : page + page_size])))
        yield _Frame(offset, size != 0, (salt1, salt2), (sum1, sum2), data)


def _sums(data: bytes | memoryview, sums: _Sums, *, big_endian: bool) -> _Sums:
    words = array("I", bytes(data))
    if big_endian != (sys.byteorder == "big"):
        words.byteswap()
    first, second = sums
    pairs = iter(words)
    for word, other in zip(pairs, pairs, strict=True):
        first = (first + word + second) & _MASK
        second = (second + other + first) & _MASK
    return first, second
