"""The jobs that live: how they begin, which process is their main one, and how they end."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from jobworker.job import outcome
from jobworker.job.custody.main_process import identity
from jobworker.job.state import Event, JobStatus, State, transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jobworker import shim
    from jobworker.job.custody.remains import Remains
    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord, Process


class LiveJobs:
    """The jobs of a Service that have not ended. See `Custody` for `on_running` and `on_ended`."""

    def __init__(
        self,
        remains: Remains,
        *,
        on_running: Callable[[Job, JobRecord], None],
        on_ended: Callable[[Job, JobRecord], None],
    ) -> None:
        self._remains = remains
        self._on_running = on_running
        self._on_ended = on_ended
        self._jobs: dict[str, Job] = {}
        self._pidfds: dict[str, int] = {}
        self.launching: set[str] = set()
        """The ids of those whose launch is under way: nobody else takes them up meanwhile."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def get(self, job_id: str) -> Job | None:
        """Return a job."""
        return self._jobs.get(job_id)

    def take_up(self, jobs: Iterable[Job]) -> None:
        """Take jobs that were unfinished when last heard of."""
        self._jobs.update({job.id: job for job in jobs})

    def add(self, job: Job) -> None:
        """Take a job that is about to be launched."""
        self._jobs[job.id] = job
        self.launching.add(job.id)

    def drop(self, job: Job) -> None:
        """Forget a job; what is heard of it is ignored from now on."""
        self._jobs.pop(job.id, None)
        self.launching.discard(job.id)
        self._close_pidfd(job)

    def close(self) -> None:
        """Let go of the main processes."""
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()

    def pidfd(self, job: Job) -> int | None:
        """Return the pidfd of a job's main process; it stays the jobs'."""
        return self._pidfds.get(job.id)

    def take_pidfd(self, job: Job) -> int | None:
        """Return the same; now it is the caller's."""
        return self._pidfds.pop(job.id, None)

    def adopt(self, job: Job, launched: shim.Launched) -> None:
        """Take what the shim says of a job whose command was executed; its pidfd is ours now."""
        if job.finished or job not in self:  # Its end overtook the answer.
            os.close(launched.pidfd)
            return
        self._close_pidfd(job)
        self._pidfds[job.id] = launched.pidfd
        if job.status.state is not State.RUNNING:
            self.begin(job, identity(launched), launched.started_at)

    def begin(self, job: Job, process: Process, started_at: float) -> None:
        """Let a pending job run; `started_at` is in seconds since the epoch."""
        status = JobStatus(transition(job.status.state, Event.START))
        self._on_running(
            job, replace(job.record, status=status, process=process, started_at=started_at)
        )

    def conclude(self, job: Job, end: shim.ExitRecord) -> None:
        """Finish a job by its exit record."""
        if job.finished:
            return
        # Nothing is left of the cgroup, unless the shim failed to remove it, or died before it did.
        self._remains.remove_cgroup(job)
        self.finish(
            job,
            replace(
                job.record,
                status=outcome.conclude(job.status.state, end),
                started_at=end.started_at,
                ended_at=end.ended_at,
                output_size=end.output_size,
                stderr_size=end.stderr_size if job.spec.split_stderr else None,
                usage=end.usage,
            ),
        )

    def finish(self, job: Job, record: JobRecord) -> None:
        """Finish a job as `record` has it."""
        self.drop(job)
        self._on_ended(job, record)

    def _close_pidfd(self, job: Job) -> None:
        if (pidfd := self.take_pidfd(job)) is not None:
            os.close(pidfd)
