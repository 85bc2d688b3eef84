"""Reading a job's output from any offset, as it grows or once: each follower reads for itself."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self

from jobworker.output.kept import first_kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from jobworker.output.watch import Watch

MIN_CHUNK: Final = 16 * 1024
MAX_CHUNK: Final = 1024 * 1024
CHUNK_BUDGET: Final = 128 * MAX_CHUNK
"""Bytes that the chunks of all followers of the process may have together, if all are behind."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output: `data`, whose first byte is at `offset` bytes from the start."""

    offset: int
    data: bytes


def follow(
    fd: int,
    *,
    offset: int = 0,
    final_size: Callable[[], int | None],
    watch: Watch,
    cap: int | None = None,
) -> Follower:
    """Follow a job's output, open as `fd`, from byte `offset` until the job has finished.

    `final_size` returns the size of the output once the job has finished, None before; `watch` must
    be woken after that. Every byte up to the final size comes exactly once, and none beyond it.
    With a `cap` on the output, what that has dropped is left out, which shows in the offsets.
    An offset beyond what is there waits for it. The follower owns `fd` and `watch`.
    """
    return Follower(fd, offset, final_size, watch, cap=cap)


def read_to(
    fd: int, *, offset: int = 0, size: int | None = None, cap: int | None = None
) -> Follower:
    """Read a job's output, open as `fd`, from byte `offset` to byte `size`, which is final.

    Without `size` the output may still grow, and it is read to where it ends now. `cap` is as for
    `follow`. The follower that is returned owns `fd`.
    """
    stop = os.lseek(fd, 0, os.SEEK_END) if size is None else size
    return Follower(fd, offset, lambda: size, None, cap=cap, stop=stop)


class Follower:
    """An async iterator of a job's output in `Chunk`s; one task at a time may use it.

    It closes its file and its watch when it ends, fails or is cancelled while waiting. A user that
    may leave the loop early says ``with follow(…) as chunks`` (or calls `close`): unlike an
    async generator's, this needs no event loop and happens at once. Raises ShuttingDown when the
    watcher is closed, and OSError when the file cannot be read.

    A follower in step gets what there is as soon as it is there. One that is behind gets larger
    chunks the more it has taken, so that a client that never reads holds 16 KiB and not 1 MiB.

    A job may truncate its own output. Followers that are past its new end wait until it has grown
    beyond where they are, or end with the job.
    """

    _count: ClassVar[int] = 0

    def __init__(
        self,
        fd: int,
        offset: int,
        final_size: Callable[[], int | None],
        watch: Watch | None,
        *,
        cap: int | None = None,
        stop: int | None = None,
    ) -> None:
        self.offset = offset
        """The offset of the next byte; after the end, the size of what could be read."""
        self._fd = fd
        self._first = offset
        self._final_size = final_size
        self._watch = watch
        self._cap = cap
        self._stop = stop
        self._open = True
        self._behind = False
        self._blocking = False
        self._thread: asyncio.Future[bytes] | None = None
        Follower._count += 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            data = await self._next() if self._open else b""
        except BaseException:
            self.close()
            raise
        if not data:
            self.close()
            raise StopAsyncIteration
        self.offset += len(data)
        return Chunk(self.offset - len(data), data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
            self.close()

    async def aclose(self) -> None:
        """Do what `close` does, for contextlib.aclosing."""
        self.close()

    def close(self) -> None:
        """Close the file and give up the watch, at once. Closing twice is fine."""
        if not self._open:
            return
        self._open = False
        Follower._count -= 1
        if self._watch is not None:
            self._watch.close()
        if self._thread is None or self._thread.done():
            os.close(self._fd)
        else:
            # Until the thread has read, the number must not come to mean another file.
            fd = self._fd
            self._thread.add_done_callback(lambda _: os.close(fd))

    async def _next(self) -> bytes:
        """Return what comes next, waiting for it; empty at the end."""
        if self._behind:
            await asyncio.sleep(0)  # nothing else would let other tasks run
        while True:
            # In this order: the version is noted first, so whatever is written, or known of the
            # end, after it was asked for below raises the version, and the wait returns.
            version = 0 if self._watch is None else self._watch.version
            final_size = self._final_size()
            data = await self._read(final_size)
            if data or final_size is not None or self._watch is None:
                return data
            await self._watch.changed(version)

    async def _read(self, final_size: int | None) -> bytes:
        """Return what is there, at most a chunk, and nothing beyond `final_size`."""
        if self._cap is None:
            return await self._read_at_offset(self._size(final_size))
        while True:
            size = self._size(final_size)
            self._leave_out(first_kept(size, self._cap))
            data = await self._read_at_offset(size)
            # What the cap has dropped by now may have been zeros already when it was read.
            rest = data[self._leave_out(first_kept(self._size(final_size), self._cap)) :]
            if rest or not data:
                return rest
            await asyncio.sleep(0)

    def _size(self, final_size: int | None) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        return size if final_size is None else min(size, final_size)

    def _leave_out(self, kept: int) -> int:
        """Go on at byte `kept` at the earliest; return how many bytes that leaves out."""
        if self._stop is not None:
            kept = min(kept, self._stop)
        left_out = max(0, kept - self.offset)
        self.offset += left_out
        return left_out

    async def _read_at_offset(self, size: int) -> bytes:
        end = size if self._stop is None else min(size, self._stop)
        limit = self._limit()
        self._behind = end - self.offset > limit
        length = min(end - self.offset, limit)
        if length <= 0:
            return b""
        if not self._blocking:
            try:
                return _read_cached(self._fd, length, self.offset)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._blocking = True
        return await self._read_in_thread(length)

    def _limit(self) -> int:
        share = min(MAX_CHUNK, CHUNK_BUDGET // Follower._count)
        if self._cap is not None:
            share = min(share, self._cap // 4)  # so that some of it is still there once it is read
        return max(MIN_CHUNK, min(share, (self.offset - self._first) // 4))

    async def _read_in_thread(self, length: int) -> bytes:
        self._thread = asyncio.get_running_loop().run_in_executor(
            None, os.pread, self._fd, length, self.offset
        )
        return await asyncio.shield(self._thread)


class _Scratch(threading.local):
    """Where the followers of a thread read to before they know how much there is.

    One buffer for all of them: there is no await between the read and the copy. (Measured: 6.8 GB/s
    with the copy; 8.8 without; 2.5 with a new buffer for each read, whose pages the kernel must
    provide.)
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(MAX_CHUNK))


_scratch: Final = _Scratch()


def _read_cached(fd: int, length: int, offset: int) -> bytes:
    """Read what is in the page cache without waiting for a disk (preadv2(2), RWF_NOWAIT).

    Raises BlockingIOError if the first byte is not there, and OSError with EOPNOTSUPP if the file
    system cannot tell (tmpfs, for one).
    """
    view = _scratch.view[:length]
    return bytes(view[: os.preadv(fd, [view], offset, os.RWF_NOWAIT)])
