"""Changes of running jobs, one after the other for each job, whatever becomes of their callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Turns:
    """Carries out changes in tasks of their own, so that none is left half done."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> frozenset[asyncio.Task[None]]:
        """The changes that have not come to their end."""
        return frozenset(self._tasks)

    async def run(self, job_id: str, change: Callable[[], Awaitable[None]]) -> None:
        """Carry out a change after those of the same job that came before.

        A caller that is cancelled does not cancel it, unless its turn has not come yet. Raises what
        `change` raises.
        """
        turn = _Turn(self._locks.setdefault(job_id, asyncio.Lock()))
        task = asyncio.create_task(turn.run(change))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not turn.has_begun:
                task.cancel()
            raise

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # The caller has it; if it is gone, nobody misses it.


class _Turn:
    """A change that waits until those before it are done."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self.has_begun = False

    async def run(self, change: Callable[[], Awaitable[None]]) -> None:
        async with self._lock:
            self.has_begun = True
            await change()
