"""Reading a job's output from any offset, as it grows or once: each follower reads for itself."""

from __future__ import annotations

import asyncio
import errno
import os
import time
import warnings
from typing import TYPE_CHECKING, Final, Self

from jobworker.output.budget import Budget
from jobworker.output.chunk import MAX_CHUNK, Chunk, Header, no_header, read, read_cached
from jobworker.output.kept import first_kept
from jobworker.output.shared import sharing

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from jobworker.output.watch import Watch

MIN_CHUNK: Final = 32 * 1024
CHUNK_BUDGET: Final = 128 * 1024 * 1024
"""Bytes that the chunks of all followers of the process may have together, if all are behind.

Measured for a thousand that read together: 384 MB/s, and 318 with half of this and of `MIN_CHUNK`.
"""
GROWTH: Final = 2
"""A chunk is at most so small a part of what its follower has taken."""
PROVEN: Final = 768 * 1024
"""Bytes after which a follower is known to read: more than a connection of many streams has room
for (`rpc.channel`), which counts as taken."""
UNPROVEN: Final = 64
"""Before that, a chunk is at most so small a part of the follower's share."""

_budget: Final = Budget(CHUNK_BUDGET, clock=time.monotonic)
"""That of this process."""


def follow(
    fd: int,
    *,
    offset: int = 0,
    final_size: Callable[[], int | None],
    watch: Watch,
    cap: int | None = None,
    header: Header = no_header,
) -> Follower:
    """Follow a job's output, open as `fd`, from byte `offset` until the job has finished.

    `final_size` returns the size of the output once the job has finished, None before; `watch` must
    be woken after that. Every byte up to the final size comes exactly once, and none beyond it.
    With a `cap` on the output, what that has dropped is left out, which shows in the offsets.
    An offset beyond what is there waits for it. The follower owns `fd` and `watch`. With a `header`
    each chunk begins with that.
    """
    return Follower(fd, offset, final_size, watch, cap=cap, header=header)


def read_to(
    fd: int,
    *,
    offset: int = 0,
    size: int | None = None,
    cap: int | None = None,
    header: Header = no_header,
) -> Follower:
    """Read a job's output, open as `fd`, from byte `offset` to byte `size`, which is final.

    Without `size` the output may still grow, and it is read to where it ends now. `cap` and
    `header` are as for `follow`. The follower that is returned owns `fd`.
    """
    stop = os.lseek(fd, 0, os.SEEK_END) if size is None else size
    return Follower(fd, offset, lambda: size, None, cap=cap, stop=stop, header=header)


class Follower:
    """An async iterator of a job's output in `Chunk`s; one task at a time may use it.

    It closes its file and its watch when it ends, fails or is cancelled while waiting. A user that
    may leave the loop early says ``with follow(…) as chunks`` (or calls `close`): unlike an
    async generator's, this needs no event loop and happens at once. Raises ShuttingDown when the
    watcher is closed, and OSError when the file cannot be read.

    A follower in step gets what there is as soon as it is there. One that is behind gets larger
    chunks the more it has taken, and as the budget of all allows (`budget`), so that clients that
    never read hold small ones. (What their connections have room for counts as taken.) The sizes of
    chunks are powers of two, and chunks end at multiples of them: followers that are at about the
    same place soon want the same chunks, which are then read once for all (`shared`).

    A job may truncate its own output. Followers that are past its new end wait until it has grown
    beyond where they are, or end with the job.
    """

    def __init__(
        self,
        fd: int,
        offset: int,
        final_size: Callable[[], int | None],
        watch: Watch | None,
        *,
        cap: int | None = None,
        stop: int | None = None,
        header: Header = no_header,
    ) -> None:
        self.offset = offset
        """The offset of the next byte; after the end, the size of what could be read."""
        self._fd = fd
        self._taken = 0
        self._final_size = final_size
        self._watch = watch
        self._cap = cap
        self._stop = stop
        self._header = header
        # A live output may be truncated by its job: its chunks are not those of the final one.
        self._shared = sharing.join(fd, (final_size() is None, header))
        self._open = True
        self._behind = False
        self._blocking = False
        self._thread: asyncio.Future[Chunk] | None = None
        self._share = _budget.join()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            self._share.take_back()
            chunk = await self._next() if self._open else None
        except BaseException:
            self.close()
            raise
        if chunk is None:
            self.close()
            raise StopAsyncIteration
        self._share.give(len(chunk.data))
        self._taken += chunk.end - chunk.offset
        self.offset = chunk.end
        return chunk

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
        self._share.leave()
        self._shared.leave()
        if self._watch is not None:
            self._watch.close()
        if self._thread is None or self._thread.done():
            os.close(self._fd)
        else:
            # Until the thread has read, the number must not come to mean another file.
            fd = self._fd
            self._thread.add_done_callback(lambda _: os.close(fd))

    async def _next(self) -> Chunk | None:
        """Return what comes next, waiting for it; None at the end."""
        if self._behind and self._header is no_header:
            # Nothing else would let other tasks run. (What has a header is sent, and sending does.)
            await asyncio.sleep(0)
        while True:
            # In this order: the version is noted first, so whatever is written, or known of the
            # end, after it was asked for below raises the version, and the wait returns.
            version = 0 if self._watch is None else self._watch.version
            final_size = self._final_size()
            chunk = await self._read(final_size)
            if chunk is not None or final_size is not None or self._watch is None:
                return chunk
            await self._watch.changed(version)

    async def _read(self, final_size: int | None) -> Chunk | None:
        """Return what is there, at most a chunk, and nothing beyond `final_size`."""
        while True:
            size = self._size(final_size)
            self._leave_out(first_kept(size, self._cap))
            begin, there = self.offset, size if self._stop is None else min(size, self._stop)
            if begin >= there:
                self._behind = False
                return None
            step = self._chunk_size()
            end = begin - begin % step + step
            self._behind = there > end
            # Who is in step takes what another one in step was given, be there more by now.
            wanted = (begin, end)
            shared = self._shared.find(wanted)
            if shared is not None and shared.end <= there:
                return shared
            chunk = await self._read_chunk(begin, min(end, there))
            if chunk.end == begin:
                return None
            # What the cap has dropped by now may have been zeros already when it was read.
            if left_out := self._leave_out(first_kept(self._size(final_size), self._cap)):
                if self.offset < chunk.end:
                    return chunk.without_first(left_out, self._header)
                await asyncio.sleep(0)
                continue
            self._shared.keep(wanted, chunk)
            return chunk

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

    async def _read_chunk(self, begin: int, end: int) -> Chunk:
        if not self._blocking:
            try:
                return read_cached(self._fd, begin, end - begin, self._header)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._blocking = True
        return await self._read_in_thread(begin, end)

    def _chunk_size(self) -> int:
        share = self._share.size()
        if self._taken < PROVEN:
            share //= UNPROVEN
        if self._cap is not None:
            share = min(share, self._cap // 4)  # so that some of it is still there once it is read
        limit = max(MIN_CHUNK, min(MAX_CHUNK, share, self._taken // GROWTH))
        return 1 << (limit.bit_length() - 1)

    async def _read_in_thread(self, begin: int, end: int) -> Chunk:
        """Read in a thread, or wait for the thread that reads the same for another follower."""
        reading = self._shared.reading
        if (future := reading.get((begin, end))) is None:
            future = asyncio.get_running_loop().run_in_executor(
                None, read, self._fd, begin, end - begin, self._header
            )
            self._thread = reading[begin, end] = future
            future.add_done_callback(lambda _: reading.pop((begin, end)))
        return await asyncio.shield(future)
