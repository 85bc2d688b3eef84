"""Who waits for which job's output, and waking them when it grows: one inotify for the process.

A wait must not miss what happens between the last read and the moment the wait begins. Nothing is
remembered for a reader that is not waiting; instead each watch has a version, which grows with
every event. A reader notes the version, reads to the end, and waits until the version differs from
the one it noted: an event in between has already changed it, and the wait returns at once.

IN_MODIFY is the only event asked for. It covers every way a file changes size: write(2) and its
relatives by whichever process holds the descriptor, truncation, and fallocate(2). (mmap(2) goes
unreported, see inotify(7), but cannot extend a file.) Unlinking the output needs no event: the
watch is on the inode, which goes on growing while the job has it open. The end of a job changes no
file that is watched, so whoever knows of it calls `Watcher.wake`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING, Final, Self

from jobworker.errors import ShuttingDown
from jobworker.output.inotify import OVERFLOW, Inotify

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

PAUSE: Final = 0.002
"""Seconds between two batches of events. The first event after a quiet time is passed on at once;
a job that writes without pause wakes its followers, and costs us, this often at the most."""

POLL_INTERVAL: Final = 0.25
"""Seconds between looks at an output that the kernel does not watch for us."""

_REMEDIES: Final = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances, or this process's limit of open files",
}

_log = logging.getLogger(__name__)


class Watch:
    """One job's output as its followers see it: a version that grows, and waiting for that.

    All followers of a job share one watch. `Watcher.watch` gives it out; each of them closes it.
    """

    def __init__(self, job_id: str, release: Callable[[Watch], None]) -> None:
        self.job_id: Final = job_id
        self.version = 0
        """Grows whenever the output may have changed or the job may have finished."""
        self.followers = 0
        """How many share it."""
        self.descriptor: int | None = None
        """The kernel's number for it, or None if the kernel does not watch the output."""
        self._release = release
        self._waiting: set[asyncio.Future[None]] = set()
        self._ended = False

    async def changed(self, since: int) -> None:
        """Return as soon as `version` differs from `since`; at once if it already does.

        Raises ShuttingDown when the watcher has been closed.
        """
        while self.version == since and not self._ended:
            # A future for each waiter, because cancelling a waiter cancels what it awaits.
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
        if self._ended:
            raise ShuttingDown(f"cannot follow job {self.job_id}: the server is shutting down")

    def wake(self) -> None:
        """Raise the version and wake all who wait, in one pass."""
        self.version += 1
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def end(self) -> None:
        """Make every wait, now and later, raise ShuttingDown."""
        self._ended = True
        self.wake()

    def close(self) -> None:
        """Give up one follower's share; the watch is gone with the last one."""
        self._release(self)


class Watcher:
    """Watches the outputs that are being followed; ``len()`` tells how many jobs that are.

    It belongs to one event loop, and takes an inotify instance when there is something to watch.
    An output that the kernel will not watch (a limit is reached) is looked at every
    `poll_interval` seconds instead. `inotify` makes the instance.
    """

    def __init__(
        self,
        inotify: Callable[[], Inotify] = Inotify,
        *,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        self._make_inotify = inotify
        self._poll_interval = poll_interval
        self._inotify: Inotify | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._watches: dict[str, Watch] = {}
        self._by_descriptor: dict[int, Watch] = {}
        self._polled: set[Watch] = set()
        self._poll: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._watches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def watch(self, job_id: str, fd: int) -> Watch:
        """Return the watch on a job's output, open as `fd`; close it when done.

        Never fails for want of kernel resources. Raises ShuttingDown after `close`.
        """
        if self._closed:
            raise ShuttingDown(f"cannot follow job {job_id}: the server is shutting down")
        watch = self._watches.get(job_id)
        if watch is None:
            watch = Watch(job_id, self._release)
            self._observe(watch, fd)
            self._watches[job_id] = watch
        watch.followers += 1
        return watch

    def wake(self, job_id: str) -> None:
        """Wake a job's followers, because it has finished: its final size is known now."""
        if watch := self._watches.get(job_id):
            watch.wake()

    def close(self) -> None:
        """Stop watching; everybody who waits, or will, gets ShuttingDown. Closing twice is fine."""
        self._closed = True
        for timer in (self._pause, self._poll):
            if timer is not None:
                timer.cancel()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
        for watch in self._watches.values():
            watch.end()

    def _observe(self, watch: Watch, fd: int) -> None:
        try:
            if self._inotify is None:
                self._inotify = self._make_inotify()
                self._listen(self._inotify)
            watch.descriptor = self._inotify.add(fd)
        except OSError as error:
            self._observe_by_polling(watch, error)
        else:
            self._by_descriptor[watch.descriptor] = watch

    def _observe_by_polling(self, watch: Watch, error: OSError) -> None:
        if not self._polled:
            _log.warning(
                "cannot watch the output of job %s: %s; looking every %d ms instead; %s",
                watch.job_id,
                error.strerror,
                self._poll_interval * 1000,
                _REMEDIES.get(error.errno or 0, "the kernel refuses inotify"),
            )
            self._schedule_poll()
        self._polled.add(watch)

    def _release(self, watch: Watch) -> None:
        watch.followers -= 1
        if watch.followers:
            return
        del self._watches[watch.job_id]
        self._polled.discard(watch)
        if watch.descriptor is not None:
            del self._by_descriptor[watch.descriptor]
            if self._inotify is not None:
                # The kernel has removed it already if the file system was unmounted.
                with contextlib.suppress(OSError):
                    self._inotify.remove(watch.descriptor)

    def _listen(self, inotify: Inotify) -> None:
        asyncio.get_running_loop().add_reader(inotify.fd, self._events_queued, inotify)

    def _events_queued(self, inotify: Inotify) -> None:
        for descriptor in inotify.read():
            if descriptor == OVERFLOW:
                for watch in self._watches.values():
                    watch.wake()
            elif woken := self._by_descriptor.get(descriptor):
                woken.wake()
        loop = asyncio.get_running_loop()
        loop.remove_reader(inotify.fd)
        self._pause = loop.call_later(PAUSE, self._listen, inotify)

    def _schedule_poll(self) -> None:
        self._poll = asyncio.get_running_loop().call_later(self._poll_interval, self._look)

    def _look(self) -> None:
        for watch in self._polled:
            watch.wake()
        if self._polled:
            self._schedule_poll()
