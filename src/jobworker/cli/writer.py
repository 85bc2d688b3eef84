"""Writing a job's output to a descriptor, with its offset known at every moment."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from jobworker.cli.interrupts import interrupts
from jobworker.cli.session import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

STEP: Final = 64 * 1024
"""Bytes of one write: what a pipe holds (pipe(7))."""
AHEAD: Final = 8
"""Pieces that may wait for the disk while the next ones are received."""


def writer(fd: int, offset: int) -> Writer:
    """Return what writes an output from byte `offset` on to `fd`: beside the caller to a file."""
    return FileWriter(fd, offset) if stat.S_ISREG(os.fstat(fd).st_mode) else Writer(fd, offset)


class Writer:
    """Writes a job's output to a descriptor, and knows at every moment how far it has come.

    Its methods wait where the descriptor takes nothing, and there Ctrl-C is heard. They raise
    BrokenPipeError when the reader is gone, and Failure for everything else.
    """

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self.offset = offset
        """The offset of the first byte of the output that was not written: exact, also when
        KeyboardInterrupt has ended a write."""

    async def take(self, data: memoryview) -> None:
        """Write all of `data`, now or a little later."""
        self.write(data)

    async def flush(self) -> None:
        """Return once all that was taken is written."""

    def close(self) -> None:
        """Drop what was taken and is not being written yet; afterwards `offset` stays."""

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
                count = _write(self._fd, rest[:STEP])
                rest = rest[count:]
                self.offset += worth(count, len(rest))


class FileWriter(Writer):
    """The same for a regular file: a thread writes, so that receiving goes on meanwhile.

    No signal cuts a write to a file short, and none of them waits for a reader.
    """

    def __init__(self, fd: int, offset: int) -> None:
        super().__init__(fd, offset)
        self._thread = ThreadPoolExecutor(1)
        self._taken: deque[asyncio.Future[None]] = deque()
        self._failure: BaseException | None = None

    async def take(self, data: memoryview) -> None:
        """Write all of `data` soon. What went wrong is raised here, or by `flush`."""
        loop = asyncio.get_running_loop()
        self._taken.append(loop.run_in_executor(self._thread, self._write_all, data))
        while len(self._taken) > AHEAD:
            await self._taken.popleft()

    async def flush(self) -> None:
        """Return once all that was taken is written."""
        while self._taken:
            await self._taken.popleft()

    def close(self) -> None:
        """Drop what was taken and is not being written yet; afterwards `offset` stays."""
        self._thread.shutdown(cancel_futures=True)
        for future in self._taken:
            # One failure fails all behind it; the first was raised, and the rest are the same.
            if not future.cancel() and not future.cancelled():
                future.exception()

    def _write_all(self, data: memoryview) -> None:
        if self._failure is not None:  # Nothing may follow what is missing.
            raise self._failure
        try:
            while data:
                count = _write(self._fd, data)
                self.offset += count
                data = data[count:]
        except BaseException as error:
            self._failure = error
            raise


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
