"""Sees to it that the end of every live job becomes known, whoever dies meanwhile.

A live job is in one of three hands. The shim has it: then its end comes as an event. The shim has
died: then it is an orphan, which this process watches. It ended while nobody was connected: then
its exit record is on disk. Which of them it is, is found out again with each new connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jobworker import output, shim, steps
from jobworker.errors import (
    JobNotFound,
    JobWorkerError,
    LaunchFailed,
    ShimUnavailable,
    Unavailable,
)
from jobworker.job import outcome, processes
from jobworker.job.custody.end_notes import EndNotes
from jobworker.job.custody.links import Links
from jobworker.job.custody.main_process import find_main_process, identity, started_at
from jobworker.job.custody.orphans import Orphans
from jobworker.job.record import AcceptedStop
from jobworker.job.state import Event, JobStatus, State, transition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from jobworker import cgroups
    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord, Process
    from jobworker.job.spec import StopPolicy

log = logging.getLogger(__name__)

_LAUNCH_PATIENCE: Final = 60.0
"""Seconds; an execve takes that long only on a file system that hangs."""
_STOP_PATIENCE: Final = 10.0
"""Seconds until the shim has accepted a stop, not until the job has ended."""
_RECONCILE_PATIENCE: Final = 3.0
"""Seconds that a new connection waits for jobs whose execve has not come to an end yet."""


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
        self._log_dir = log_dir
        self._cgroups = cgroups
        self._on_running = on_running
        self._on_stop = on_stop
        self._on_ended = on_ended
        self._abandon = abandon
        self._jobs: dict[str, Job] = {}
        self._launching: set[str] = set()
        self._launchers: dict[str, shim.Client] = {}
        self._stopping: set[str] = set()
        self._pidfds: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes = EndNotes(run_dir)
        self._orphans = Orphans(
            cgroups=cgroups,
            notes=self._notes,
            read_end=self._read_end,
            on_record=self._conclude,
            on_end=self._finish,
        )
        self._links = Links(
            run_dir, on_ended=self._shim_ended, reconcile=self._reconcile_all, connect=connect
        )

    async def open(self, jobs: list[Job]) -> None:
        """Take up the jobs that were unfinished when last heard of. Raises ShimUnavailable."""
        self._jobs.update({job.id: job for job in jobs})
        await self._links.open()

    async def close(self) -> None:
        """Let go of all jobs; they go on."""
        await self._links.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._orphans.close()
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()

    def get(self, job_id: str) -> Job | None:
        """Return a live job."""
        return self._jobs.get(job_id)

    def jobs(self) -> list[Job]:
        """Return all live jobs."""
        return list(self._jobs.values())

    def is_stopping(self, job: Job) -> bool:
        """Whether a live job has been told to end, as far as this server knows."""
        orphan = self._orphans.get(job.id)
        return job.record.stop is not None or (orphan is not None and orphan.timed_out)

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Take a job that is about to be launched."""
        self._jobs[job.id] = job
        self._launching.add(job.id)

    def drop(self, job: Job) -> None:
        """Forget a job that did not start; events of it are ignored from now on."""
        self._jobs.pop(job.id, None)
        self._launching.discard(job.id)
        self._close_pidfd(job)

    async def launch(self, job: Job, launch: shim.Launch, **fds: int) -> None:
        """Have the shim start a job that was added; the descriptors stay the caller's.

        Raises what `shim.Client.launch` raises; after StartUndecided the job stays in custody.
        """
        client = await self._links.client()
        try:
            async with _patience(_LAUNCH_PATIENCE, "execute the command"):
                launched = await client.launch(launch, **fds)
        except ShimUnavailable:
            if not client.lost:
                raise
            self._launchers[job.id] = client
            try:
                await self._find_out(job)
            finally:
                del self._launchers[job.id]
        else:
            steps.reached("server.start.executed")
            self._adopt(job, launched)
            self._launching.discard(job.id)

    async def _find_out(self, job: Job) -> None:
        """Find out what became of a launch whose shim is gone: it may have happened.

        Raises ShimUnavailable if the command has not been executed and never will be, and
        StartUndecided if that cannot be found out now.
        """
        try:
            while True:
                client = await self._links.client()
                try:
                    await self._reconcile(job, client)
                    break
                except ShimUnavailable:
                    if not client.lost:
                        raise
        except (OSError, JobWorkerError) as error:
            raise StartUndecided(
                f"the shim died while it started job {job.id}, and it cannot be found out now "
                f"whether the command runs: {error}; ask for the job, or start it again with the "
                "same request_id, which does not run it twice"
            ) from error
        finally:
            self._launching.discard(job.id)
        if job.id not in self._jobs and not job.finished:
            raise ShimUnavailable(
                "the shim died before it executed the command, so nothing has been run; try again"
            )

    async def stop(self, job: Job, policy: StopPolicy) -> None:
        """Have a running job stopped, and return once it has ended.

        Raises ShimUnavailable if no shim can be reached, Unavailable if nobody knows the job, and
        JobNotFound if it turns out that it has never been started.
        """
        kill_at = processes.boot_time() + policy.grace
        self._accept_stop(job, policy.signal, kill_at)
        steps.reached("server.stop.accepted")
        self._stopping.add(job.id)
        try:
            await self._pass_on_stop(job, policy, kill_at)
        finally:
            self._stopping.discard(job.id)
        await job.wait()

    async def _pass_on_stop(self, job: Job, policy: StopPolicy, kill_at: float) -> None:
        """Tell whoever has a job to stop it."""
        asked_again = False
        while not job.finished:
            if (orphan := self._orphans.get(job.id)) is not None:
                orphan.stop(policy.signal, kill_at)
                break
            client = self._links.holder(job.id) or await self._links.client()
            if job.finished or job.id in self._orphans:
                continue
            try:
                async with _patience(_STOP_PATIENCE, "accept the stop"):
                    await client.stop(job.id, signal=policy.signal, grace=policy.grace)
                steps.reached("server.stop.taken")
                break
            except JobNotFound:
                if job.finished:
                    break
                if job.id not in self._jobs:
                    break  # It has ended, or was never started: waiting tells.
                if asked_again:
                    raise Unavailable(f"cannot find out what became of job {job.id}") from None
                asked_again = True
                await self._reconcile(job, client)
            except ShimUnavailable:
                if not client.lost:
                    raise
                # With the next connection, it is known who has the job.

    def _accept_stop(self, job: Job, signum: int, kill_at: float) -> None:
        """Record a stop, and when it kills: another may bring that nearer, never put it off.

        From now on, it is carried out whoever dies.
        """
        known, boot_id = job.record.stop, processes.boot_id()
        if known is not None and known.boot_id == boot_id:
            kill_at = min(kill_at, known.kill_at)
        stop = AcceptedStop(boot_id=boot_id, signal=signum, kill_at=kill_at)
        if not job.finished and job.id in self._jobs:
            self._on_stop(job, replace(job.record, stop=stop))

    async def _stop_again(self, job: Job, client: shim.Client) -> None:
        """Pass on a stop that was accepted, but that its shim has not heard of."""
        stop = job.record.stop
        if stop is None or stop.boot_id != processes.boot_id():
            return
        grace = max(stop.kill_at - processes.boot_time(), 0.0)
        try:
            await client.stop(job.id, signal=stop.signal, grace=grace)
        except (JobNotFound, ShimUnavailable):
            return  # It has ended, or the next connection does this.

    def main_process(self, job: Job) -> int | None:
        """Return the pidfd of a live job's main process, if it is known; it stays the custody's."""
        orphan = self._orphans.get(job.id)
        return self._pidfds.get(job.id) if orphan is None else orphan.pidfd

    # Beginnings and ends

    def _adopt(self, job: Job, launched: shim.Launched) -> None:
        """Take up a job that the shim has executed."""
        if job.finished or job.id not in self._jobs:  # Its end overtook the answer.
            os.close(launched.pidfd)
            return
        self._close_pidfd(job)
        self._pidfds[job.id] = launched.pidfd
        if job.status.state is State.RUNNING:
            return
        self._begin(job, identity(launched), launched.started_at)

    def _begin(self, job: Job, process: Process, started_at: float) -> None:
        status = JobStatus(transition(job.status.state, Event.START))
        self._on_running(
            job, replace(job.record, status=status, process=process, started_at=started_at)
        )

    def _shim_ended(self, end: shim.ExitRecord) -> None:
        steps.reached("server.end.received")
        job = self._jobs.get(end.job_id)
        if job is not None:
            self._conclude(job, end)

    def _conclude(self, job: Job, end: shim.ExitRecord) -> None:
        """Finish a job by its exit record."""
        if job.finished:
            return
        # Nothing is left of the cgroup, unless the shim failed to remove it, or died before it did.
        self._remove_cgroup(job)
        self._finish(
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

    def _finish(self, job: Job, record: JobRecord) -> None:
        self.drop(job)
        self._on_ended(job, record)

    def _close_pidfd(self, job: Job) -> None:
        if (pidfd := self._pidfds.pop(job.id, None)) is not None:
            os.close(pidfd)

    # Finding out who has a job

    async def _reconcile_all(self, client: shim.Client) -> None:
        """Ask about all jobs at once; one whose execve hangs is not waited for."""
        await self._settle(client)
        tasks = [
            asyncio.create_task(self._reconcile_one(job, client))
            for job in self._jobs.values()
            if job.id not in self._launching and job.id not in self._orphans
        ]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_RECONCILE_PATIENCE)
            for task in late:
                self._keep(task)
        self._sweep()

    async def _reconcile_one(self, job: Job, client: shim.Client) -> None:
        try:
            await self._place(job, client)
        except ShimUnavailable:
            pass  # The next connection asks again.
        except Exception:
            # One job that cannot be understood must not keep the others from being served.
            log.exception("cannot find out what became of job %s", job.id)

    async def _reconcile(self, job: Job, client: shim.Client) -> None:
        await self._settle(client)
        await self._place(job, client)

    async def _settle(self, client: shim.Client) -> None:
        """Wait until keepers have noted the ends of jobs that no shim has."""
        known = {*client.jobs, *self._orphans.ids()}
        if any(job_id not in known and not self._links.holder(job_id) for job_id in self._jobs):
            await processes.keepers_settled()

    async def _place(self, job: Job, client: shim.Client) -> None:
        """Find out who has a job."""
        steps.reached("server.recovery.reconciling")
        client = self._links.holder(job.id) or client
        if job.id in client.jobs:
            try:
                launched = await client.attach(job.id)
                self._adopt(job, launched)
            except JobNotFound:
                pass  # It has ended since: the event has come, or its record is on disk.
            except LaunchFailed:
                await self._abandon(job)
                return
            else:
                if not launched.stopped and job.id not in self._stopping:
                    self._keep(asyncio.create_task(self._stop_again(job, client)))
                return
        if job.finished:
            return
        process = job.record.process
        if process is None:
            await self._place_unknown(job)
            return
        pidfd = self._pidfds.pop(job.id, None) or processes.open_pidfd(process)
        if pidfd is None or processes.has_ended(pidfd):
            end, _ = self._read_end(job)
            if end is not None:
                if pidfd is not None:
                    os.close(pidfd)
                self._conclude(job, end)
                return
        self._orphans.watch(job, pidfd)

    async def _place_unknown(self, job: Job) -> None:
        """Find out what became of a job whose main process nobody has told us."""
        end, _ = self._read_end(job)
        if end is not None:
            self._conclude(job, end)
            return
        cgroup = self._cgroups.cgroup(job.id)
        async with _patience(_LAUNCH_PATIENCE, "execute the command"):
            main = await find_main_process(cgroup, self._notes)
        if job.finished or job.id not in self._jobs:
            return
        if main is None:
            if not self._may_have_begun(job):
                await self._abandon(job)
            else:
                self._orphans.watch(job, None, main_process_known=False)
        elif not main.executed:
            await self._abandon(job)
        else:
            process = identity(main)
            pidfd = processes.open_pidfd(process)
            self._begin(job, process, started_at(process))
            self._orphans.watch(job, pidfd)

    def _sweep(self) -> None:
        """Remove the notes of keepers that nobody needs any more."""
        if not self._launching:
            self._notes.sweep(job.record for job in self._jobs.values())

    def _read_end(self, job: Job) -> tuple[shim.ExitRecord | None, str]:
        """Return a job's exit record, if it is one of this job, and what is wrong with it."""
        try:
            directory = output.open_directory(self._log_dir, job.id)
            if directory is None:
                return None, ""
            try:
                end = shim.read_exit_record(directory)
            finally:
                os.close(directory)
        except (OSError, JobWorkerError) as error:
            log.exception("cannot read the exit record of job %s", job.id)
            return None, f"its exit record cannot be read: {error}"
        process = job.record.process
        if end is None:
            return None, ""
        if end.job_id != job.id or (process is not None and end.pid != process.pid):
            return None, "its exit record is another job's"
        return end, ""

    def _may_have_begun(self, job: Job) -> bool:
        """Whether the command of a pending job may have been executed: traces, or a doubt.

        A doubt remains if its shim has died, and no keeper says that what it left was noted.
        """
        written = job.output_size() or job.stderr_size()
        if self._cgroups.cgroup(job.id).populated() or written:
            return True
        client = self._launchers.get(job.id)
        if client is None or client.shim is None:
            return False
        launcher = identity(client.shim)
        stat = processes.look(launcher)
        # One that has no keeper is a zombie until somebody else reaps it.
        dead = stat is None or stat.ending
        return dead and self._notes.of_process(launcher) is None

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remove_cgroup(self, job: Job) -> str:
        """Remove what may be left of a job's cgroup; return in words what went wrong."""
        try:
            self._cgroups.cgroup(job.id).remove()
        except (OSError, ValueError) as error:
            log.exception("cannot remove the cgroup of job %s", job.id)
            return str(error)
        return ""


@asynccontextmanager
async def _patience(seconds: float, what: str) -> AsyncIterator[None]:
    """Raise ShimUnavailable if the block takes longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ShimUnavailable(f"the shim did not {what} within {seconds:g} s") from None
