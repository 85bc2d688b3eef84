"""A piece of output: how it is read from the file, behind a header if it is to be sent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

MAX_CHUNK: Final = 512 * 1024
"""Bytes. A larger one does not stay in a core's cache on its way: for a GiB to one follower, server
and client together took 5 % more CPU time with 1 MiB, and 8 % more with 256 KiB."""

Header: TypeAlias = Callable[[int, int], bytes]
"""Makes what stands before the output in a chunk, of its offset and its length."""

HEADER_ROOM: Final = 64
"""Bytes that a header may have."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output: `data`, whose first byte is at `offset` bytes from the start.

    In front of it are as many bytes of a header as `header` says, if the follower was given one.
    """

    offset: int
    data: bytes
    header: int = 0

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data) - self.header

    def without_first(self, count: int, header: Header) -> Chunk:
        """Return the same without its first `count` bytes."""
        rest = self.data[self.header + count :]
        first = header(self.offset + count, len(rest))
        return Chunk(self.offset + count, first + rest, len(first))


def no_header(_offset: int, _length: int) -> bytes:
    """Return nothing: chunks are the output alone."""
    return b""


class _Scratch(threading.local):
    """Where the followers of a thread read to before they know how much there is.

    One buffer for all of them: there is no await between the read and the copy. (Measured: 6.8 GB/s
    with the copy; 8.8 without; 2.5 with a new buffer for each read, whose pages the kernel must
    provide.)
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(HEADER_ROOM + MAX_CHUNK))


_scratch: Final = _Scratch()


def read_cached(fd: int, offset: int, length: int, header: Header) -> Chunk:
    """Read what is in the page cache without waiting for a disk (preadv2(2), RWF_NOWAIT).

    Raises BlockingIOError if the first byte is not there, and OSError with EOPNOTSUPP if the file
    system cannot tell (tmpfs, for one).
    """
    return _read(fd, offset, length, header, os.RWF_NOWAIT)


def read(fd: int, offset: int, length: int, header: Header) -> Chunk:
    """Read what there is, waiting for the disk if need be."""
    return _read(fd, offset, length, header, 0)


def _read(fd: int, offset: int, length: int, header: Header, flags: int) -> Chunk:
    view = _scratch.view
    count = os.preadv(fd, [view[HEADER_ROOM : HEADER_ROOM + length]], offset, flags)
    first = header(offset, count)
    begin = HEADER_ROOM - len(first)
    view[begin:HEADER_ROOM] = first
    return Chunk(offset, bytes(view[begin : HEADER_ROOM + count]), len(first))
