"""A single-threaded event loop on epoll(7): descriptors that become ready, and deadlines.

Not asyncio: each megabyte that the shim's process maps makes every launch slower, because clone
copies its page tables, and the shim needs EPOLLPRI, by which a cgroup says that it is empty.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final

from jobworker.shim.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_MAX_WAIT: Final = 3600.0
"""Seconds; epoll_wait takes at most 2^31 ms."""
_RETRY: Final = 1.0
"""Seconds until a handler that failed is tried again."""


class Loop:
    """Calls handlers when their descriptors are ready and callbacks when their time has come.

    A handler must bear to be called although nothing happened: a descriptor that another handler
    closed in the same round may have been given to a new file by then.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._deadlines: dict[Hashable, tuple[float, Callable[[], None]]] = {}

    def watch(self, fd: int, events: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever one of the epoll `events` is true of `fd`."""
        self._epoll.register(fd, events)
        self._watched[fd] = (events, handler)

    def modify(self, fd: int, events: int) -> None:
        """Change what a watched descriptor is watched for."""
        if fd in self._watched and self._watched[fd][0] != events:
            self._epoll.modify(fd, events)
            self._watched[fd] = (events, self._watched[fd][1])

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, which must still be open; nothing happens if it is not watched."""
        self.cancel(("watch again", fd))
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, key: Hashable, when: float, callback: Callable[[], None]) -> None:
        """Call `callback` once at `when` (time.monotonic seconds), instead of what `key` had."""
        self._deadlines[key] = (when, callback)

    def cancel(self, key: Hashable) -> None:
        """Forget the deadline of `key`, if there is one."""
        self._deadlines.pop(key, None)

    def run_once(self) -> None:
        """Wait until something is ready or due, and handle all that is."""
        for fd, _ in self._epoll.poll(self._wait()):
            self._handle(fd)
        now = time.monotonic()
        for key in [key for key, (when, _) in self._deadlines.items() if when <= now]:
            self._expire(key)

    def close(self) -> None:
        """Close the loop's own descriptor."""
        self._epoll.close()

    def _wait(self) -> float:
        if not self._deadlines:
            return _MAX_WAIT
        first = min(when for when, _ in self._deadlines.values())
        return min(max(0.0, first - time.monotonic()), _MAX_WAIT)

    def _handle(self, fd: int) -> None:
        events, handler = self._watched.get(fd, (0, None))
        if handler is None:
            return
        try:
            handler()
        except Exception:  # noqa: BLE001 - a mistake in one handler must not end the jobs of all
            _log_exception()
            if fd in self._watched:
                self.unwatch(fd)
                when = time.monotonic() + _RETRY
                self.call_at(("watch again", fd), when, lambda: self.watch(fd, events, handler))

    def _expire(self, key: Hashable) -> None:
        if key not in self._deadlines:
            return
        _, callback = self._deadlines.pop(key)
        try:
            callback()
        except Exception:  # noqa: BLE001 - as above
            _log_exception()
            self._deadlines.setdefault(key, (time.monotonic() + _RETRY, callback))


def _log_exception() -> None:
    import traceback  # noqa: PLC0415 - costs memory, and is not needed unless something is wrong

    log(traceback.format_exc().rstrip())
