"""Where the last bytes or lines of an output begin; lines are sought from its end, by blocks."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Final, TypeVar

from jobworker.output.kept import first_kept

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BLOCK: Final = 1024 * 1024
"""Bytes that are looked at in one go, and held in memory."""


async def find_beginning(
    fd: int,
    *,
    size: int | None = None,
    cap: int | None = None,
    last_bytes: int | None = None,
    last_lines: int | None = None,
) -> int:
    """Return the offset at which the last of an output begins: so many bytes, or lines.

    The output is open as `fd`; `size` is its final one, None for what is there now; `cap` is how
    many bytes are kept. With neither bytes nor lines that is 0. Raises what `line_beginning`
    raises.
    """
    there = os.lseek(fd, 0, os.SEEK_END)
    end = there if size is None else min(there, size)
    first = first_kept(end, cap)
    if last_lines is not None:
        return await line_beginning(fd, last_lines, end, first=first)
    return 0 if last_bytes is None else max(first, end - last_bytes)


async def line_beginning(fd: int, count: int, end: int, *, first: int = 0) -> int:
    """Return the offset of the first of the last `count` lines before byte `end` of a file.

    A last line without a newline counts. If there are fewer, that is `first`, the first byte there
    is. The file is read in threads; a cancelled caller gets its CancelledError once none of them
    uses `fd` any more. Raises OSError if the file cannot be read.
    """
    if not count:
        return end
    # The newline that ends the last line begins no other one.
    position = end
    if end > first and await _in_thread(_block, fd, end - 1, end) == b"\n":
        position -= 1
    while position > first:
        begin = max(first, position - BLOCK)
        block = await _in_thread(_block, fd, begin, position)
        found = block.count(b"\n")
        if found >= count:
            return begin + _newline_from_the_right(block, count) + 1
        count -= found
        position = begin
    return first


def _newline_from_the_right(block: bytes, count: int) -> int:
    at = len(block)
    for _ in range(count):
        at = block.rindex(b"\n", 0, at)
    return at


def _block(fd: int, begin: int, end: int) -> bytes:
    """Read the bytes from `begin` to `end`; nothing if there is only a hole, which has no newline.

    A job may write its output with holes, and a reader finds zeros there.
    """
    try:
        if os.lseek(fd, begin, os.SEEK_DATA) >= end:
            return b""
    except OSError as error:
        if error.errno != errno.ENXIO:  # There is no data behind `begin`.
            raise
        return b""
    # What is missing at the end was truncated meanwhile.
    return os.pread(fd, end - begin, begin)


async def _in_thread(action: Callable[..., T], *arguments: int) -> T:
    future = asyncio.get_running_loop().run_in_executor(None, action, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
