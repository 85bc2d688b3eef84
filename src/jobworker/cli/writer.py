"""Writing a job's output to a descriptor, with its offset known at every moment."""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import TYPE_CHECKING, Final

from jobworker.cli.interrupts import interrupts
from jobworker.cli.session import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

_STEP: Final = 64 * 1024
"""Bytes of one write: what a pipe holds (pipe(7))."""
_FILE_STEP: Final = 4 * 1024 * 1024
"""The same for a regular file: no signal cuts such a write short, and none waits for a reader."""


class Writer:
    """Writes a job's output to a descriptor, and knows at every moment how far it has come.

    Its methods wait where the descriptor takes nothing, and there Ctrl-C is heard. They raise
    BrokenPipeError when the reader is gone, and Failure for everything else.

    A file is written by whoever receives, too, not by a thread beside it: gRPC receives meanwhile
    all the same, and with two threads that want the interpreter a copy of a GiB took half again as
    much CPU time.
    """

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._step = _FILE_STEP if stat.S_ISREG(os.fstat(fd).st_mode) else _STEP
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self.offset = offset
        """The offset of the first byte of the output that was not written: exact, also when
        KeyboardInterrupt has ended a write."""

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        self._write(data, lambda count, _left: count)

    def write_as(self, line: bytes, size: int) -> None:
        """Write a `line` that stands for `size` bytes of the output, which count once it is out."""
        self._write(line, lambda _count, left: 0 if left else size)

    def _write(self, data: bytes | memoryview, worth: Callable[[int, int], int]) -> None:
        rest = memoryview(data)
        while rest:
            # A signal ends a write that has written a part (signal(7)), and an exception raised by
            # its handler would take the count with it. Where poll sees room, a part is written.
            self._room.poll()
            with interrupts.held():
                count = _write(self._fd, rest[: self._step])
                rest = rest[count:]
                self.offset += worth(count, len(rest))


def _write(fd: int, data: memoryview) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise Failure(f"cannot write the output: {error.strerror} ({name})") from error
