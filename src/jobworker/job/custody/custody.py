"""Sees to it that the end of every live job becomes known, whoever dies meanwhile.

A live job is in one of three hands. The shim has it: then its end comes as an event. The shim has
died: then it is an orphan, which this process watches. It ended while nobody was connected: then
its exit record is on disk. Which of them it is, is found out again with each new connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker import shim, steps
from jobworker.errors import JobWorkerError, ShimUnavailable
from jobworker.job.custody import patience
from jobworker.job.custody.end_notes import EndNotes
from jobworker.job.custody.holders import Holders
from jobworker.job.custody.links import Links
from jobworker.job.custody.live import LiveJobs
from jobworker.job.custody.orphans import Orphans
from jobworker.job.custody.remains import Remains
from jobworker.job.custody.stops import Stops

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from jobworker import cgroups
    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord
    from jobworker.job.spec import StopPolicy


class StartUndecided(ShimUnavailable):
    """Raised when it cannot be found out now whether a command was executed; it may have been."""


class Custody:
    """Holds the live jobs of a Service.

    `on_running(job, record)` is called when a job has begun to run; if it raises, the launch fails.
    `on_stop(job, record)` is called when a stop was accepted, and `on_ended(job, record)` when a
    job has ended. `abandon(job)` removes a job that turns out not to have started. `connect` makes
    a connection to the shim.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        log_dir: Path,
        cgroups: cgroups.Service,
        on_running: Callable[[Job, JobRecord], None],
        on_stop: Callable[[Job, JobRecord], None],
        on_ended: Callable[[Job, JobRecord], None],
        abandon: Callable[[Job], Awaitable[None]],
        connect: Callable[..., Awaitable[shim.Client]] | None = None,
    ) -> None:
        notes = EndNotes(run_dir)
        remains = Remains(log_dir, cgroups)
        self._live = LiveJobs(remains, on_running=on_running, on_ended=on_ended)
        self._orphans = Orphans(
            cgroups=cgroups,
            notes=notes,
            remains=remains,
            on_record=self._live.conclude,
            on_end=self._live.finish,
        )
        self._links = Links(
            run_dir, on_ended=self._shim_ended, reconcile=self._reconcile_all, connect=connect
        )
        self._stops = Stops(
            self._live, self._links, self._orphans, on_stop=on_stop, reconcile=self._reconcile
        )
        self._holders = Holders(
            self._live,
            self._links,
            self._orphans,
            cgroups=cgroups,
            notes=notes,
            remains=remains,
            abandon=abandon,
            stop_again=self._stops.again,
        )

    async def open(self, jobs: list[Job]) -> None:
        """Take up the jobs that were unfinished when last heard of. Raises ShimUnavailable."""
        self._live.take_up(jobs)
        await self._links.open()

    async def close(self) -> None:
        """Let go of all jobs; they go on."""
        await self._links.close()
        await self._holders.close()
        await self._orphans.close()
        self._live.close()

    def get(self, job_id: str) -> Job | None:
        """Return a live job."""
        return self._live.get(job_id)

    def jobs(self) -> list[Job]:
        """Return all live jobs."""
        return list(self._live)

    def is_stopping(self, job: Job) -> bool:
        """Whether a live job has been told to end, as far as this server knows."""
        orphan = self._orphans.get(job.id)
        return job.record.stop is not None or (orphan is not None and orphan.timed_out)

    def main_process(self, job: Job) -> int | None:
        """Return the pidfd of a live job's main process, if it is known; it stays the custody's."""
        orphan = self._orphans.get(job.id)
        return self._live.pidfd(job) if orphan is None else orphan.pidfd

    def __len__(self) -> int:
        return len(self._live)

    def add(self, job: Job) -> None:
        """Take a job that is about to be launched."""
        self._live.add(job)

    def drop(self, job: Job) -> None:
        """Forget a job that did not start; events of it are ignored from now on."""
        self._live.drop(job)

    async def launch(self, job: Job, launch: shim.Launch, **fds: int) -> None:
        """Have the shim start a job that was added; the descriptors stay the caller's.

        Raises what `shim.Client.launch` raises; after StartUndecided the job stays in custody.
        """
        client = await self._links.client()
        try:
            async with patience.at_most(patience.LAUNCH, "execute the command"):
                launched = await client.launch(launch, **fds)
        except ShimUnavailable:
            if not client.lost:
                raise
            await self._find_out(job, client)
        else:
            steps.reached("server.start.executed")
            self._live.adopt(job, launched)
            self._live.launching.discard(job.id)

    async def _find_out(self, job: Job, launcher: shim.Client) -> None:
        """Find out what became of a launch whose shim is gone: it may have happened.

        Raises ShimUnavailable if the command has not been executed and never will be, and
        StartUndecided if that cannot be found out now.
        """
        try:
            await self._holders.reconcile_launch(job, launcher)
        except (OSError, JobWorkerError) as error:
            raise StartUndecided(
                f"the shim died while it started job {job.id}, and it cannot be found out now "
                f"whether the command runs: {error}; ask for the job, or start it again with the "
                "same request_id, which does not run it twice"
            ) from error
        finally:
            self._live.launching.discard(job.id)
        if job not in self._live and not job.finished:
            raise ShimUnavailable(
                "the shim died before it executed the command, so nothing has been run; try again"
            )

    async def stop(self, job: Job, policy: StopPolicy) -> None:
        """Have a running job stopped, and return once it has ended.

        Raises ShimUnavailable if no shim can be reached, Unavailable if nobody knows the job, and
        JobNotFound if it turns out that it has never been started.
        """
        await self._stops.stop(job, policy)

    def _shim_ended(self, end: shim.ExitRecord) -> None:
        steps.reached("server.end.received")
        if (job := self._live.get(end.job_id)) is not None:
            self._live.conclude(job, end)

    async def _reconcile_all(self, client: shim.Client) -> None:
        await self._holders.reconcile_all(client)

    async def _reconcile(self, job: Job, client: shim.Client) -> None:
        await self._holders.reconcile(job, client)
