"""Removes every trace of starts that failed, as often as it takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from jobworker import output, steps
from jobworker.job.processes import wait_empty

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jobworker import cgroups
    from jobworker.job.job import Job
    from jobworker.job.registry.store import Store

_FIRST_RETRY: Final = 0.5
_LONGEST_RETRY: Final = 60.0
"""Seconds until what is left of a start that failed is tried to be removed again."""


class Abandoning:
    """Jobs that have not started, until nothing is left of them: nobody finds them any more.

    `drop(job)` is called when one is given up, and `on_gone()` when nothing is left of one.
    """

    def __init__(
        self,
        store: Store,
        cgroups: cgroups.Service,
        log_dir: Path,
        *,
        drop: Callable[[Job], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._store = store
        self._cgroups = cgroups
        self._log_dir = log_dir
        self._drop = drop
        self._on_gone = on_gone
        self._leftovers: dict[str, Job] = {}
        self._pauses: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving = False

    def get(self, job_id: str) -> Job | None:
        """Return a job of which something is left."""
        return self._leftovers.get(job_id)

    @property
    def under_way(self) -> list[asyncio.Task[None]]:
        """What is being removed at this moment."""
        return list(self._tasks.values())

    async def abandon(self, job: Job) -> None:
        """Remove every trace of a job that did not start; those who wait for it are told.

        However many want it, it is done once at a time, and goes on if they go away; what fails is
        tried again later. Raises OSError, or what the registry raises.
        """
        if job.id not in self._tasks:
            self._drop(job)
            self._leftovers[job.id] = job
            job.forget()
            self._begin(job)
        await asyncio.shield(self._tasks[job.id])

    def leave(self) -> None:
        """Try nothing again: the next server removes what is left."""
        self._leaving = True

    def cancel(self) -> None:
        """Give up what is under way."""
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, job: Job) -> None:
        task = asyncio.create_task(self._remove_traces(job))
        self._tasks[job.id] = task
        task.add_done_callback(lambda task: self._done(job, task))

    def _done(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._tasks[job.id]
        if task.cancelled() or task.exception() is None:  # The callers have the exception.
            return
        pause = self._pauses.get(job.id, _FIRST_RETRY)
        self._pauses[job.id] = min(2 * pause, _LONGEST_RETRY)
        asyncio.get_running_loop().call_later(pause, self._try_again, job)

    def _try_again(self, job: Job) -> None:
        idle = job.id in self._leftovers and job.id not in self._tasks
        if idle and not self._leaving:
            self._begin(job)

    async def _remove_traces(self, job: Job) -> None:
        cgroup = self._cgroups.cgroup(job.id)
        cgroup.kill()
        await wait_empty(cgroup)
        steps.reached("server.abandon.emptied")
        self._cgroups.remove_cgroup(job.id)
        steps.reached("server.abandon.cgroup_removed")
        output.remove(self._log_dir, job.id)
        steps.reached("server.abandon.directory_removed")
        self._store.delete(job.id)
        steps.reached("server.abandon.deleted")
        del self._leftovers[job.id]
        self._pauses.pop(job.id, None)
        self._on_gone()
