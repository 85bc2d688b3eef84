"""Removing finished jobs: from the registry first, then their files, so that no crash halves one.

The order is: the registry forgets the job and notes that its files have to go, in one transaction;
the files go; the note goes. Whoever asks after the first step finds no such job. What is
interrupted after it is taken up again from the note.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker import output, steps
from jobworker.errors import FailedPrecondition, JobNotFound, JobWorkerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from jobworker.job.job import Job
    from jobworker.job.registry.ended import EndedJobs

BATCH: Final = 16
"""How many jobs go at a time: the event loop is held up for some milliseconds by that many."""

Problems = dict[str, Exception]
"""Job id → what has gone wrong with it."""


class Removal:
    """Removes jobs of one registry and one log directory.

    `in_thread` runs what may wait for a disk: to unlink gigabytes takes some file systems long. It
    is asked for each job by itself, so that who leaves waits for one and not for all.
    `tell(job, user)` is called in the transaction in which the registry forgets a job, and
    `on_removed(job, user)` after it.
    """

    def __init__(
        self,
        *,
        ended: EndedJobs,
        log_dir: Path,
        in_thread: Callable[..., Awaitable[None]],
        tell: Callable[[Job, str], None],
        on_removed: Callable[[Job, str], None],
    ) -> None:
        self._ended = ended
        self._log_dir = log_dir
        self._in_thread = in_thread
        self._tell = tell
        self._on_removed = on_removed
        self._under_way: set[str] = set()

    async def remove(self, job: Job, user: str) -> None:
        """Remove a job that has ended; readers keep what they have open, to its end.

        Raises FailedPrecondition if its directory holds what jobworker did not put there (then
        nothing is changed), JobNotFound if it has been removed meanwhile, and what the registry
        raises.
        """
        for problem in (await self._each(output.check_removable, [job.id])).values():
            raise FailedPrecondition(
                f"cannot remove job {job.id}: {problem}, then remove the job again"
            ) from problem
        if not self._forget([job], user):
            raise JobNotFound(job.id)
        for problem in (await self._remove_files([job.id])).values():
            raise FailedPrecondition(
                f"job {job.id} is removed, but not all of its files: {problem}; the server goes on "
                "trying"
            ) from problem

    async def remove_all(
        self, job_ids: Sequence[str], fetch: Callable[[str], Job | None]
    ) -> Problems:
        """Remove several jobs that have ended, and return what could not be removed.

        `fetch` returns a job that may go; it is asked when nothing can come between any more.
        Raises what the registry raises.
        """
        problems = await self._each(output.check_removable, job_ids)
        jobs = [job for job_id in job_ids if job_id not in problems and (job := fetch(job_id))]
        return problems | await self._remove_files(self._forget(jobs, ""))

    async def finish(self, skip: Collection[str] = ()) -> tuple[Sequence[str], Problems]:
        """Take up removals that were interrupted or have failed, a batch of them.

        Returns which ones these were, and what has gone wrong with some. Raises what the registry
        raises.
        """
        job_ids = self._ended.removing(BATCH, self._under_way.union(skip))
        return job_ids, await self._remove_files(job_ids)

    def _forget(self, jobs: Sequence[Job], user: str) -> list[str]:
        by_id = {job.id: job for job in jobs}
        found = self._ended.begin_removing(by_id, lambda job_id: self._tell(by_id[job_id], user))
        steps.reached("server.remove.recorded")
        for job in jobs:
            if job.id in found:
                self._on_removed(job, user)
        return sorted(found)

    async def _remove_files(self, job_ids: Sequence[str]) -> Problems:
        if not job_ids:
            return {}
        self._under_way.update(job_ids)
        try:
            problems = await self._each(output.remove, job_ids)
            steps.reached("server.remove.files_removed")
            self._ended.removed(job_id for job_id in job_ids if job_id not in problems)
            steps.reached("server.remove.finished")
        finally:
            self._under_way.difference_update(job_ids)
        return problems

    async def _each(self, action: Callable[[Path, str], None], job_ids: Iterable[str]) -> Problems:
        problems: Problems = {}
        for job_id in job_ids:
            try:
                await self._in_thread(action, self._log_dir, job_id)
            except (OSError, JobWorkerError) as error:
                problems[job_id] = error
        return problems


def refuse_running(job: Job) -> None:
    """Raise FailedPrecondition if a job has not ended."""
    if not job.finished:
        raise FailedPrecondition(
            f"cannot remove job {job.id}: it is {job.status.state.value}; stop it first: "
            f"jobworker-cli stop {job.id}"
        )
