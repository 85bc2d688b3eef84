"""Sees to it that the end of every live job becomes known, whoever dies meanwhile.

A live job is in one of three hands. The shim has it: then its end comes as an event. The shim has
died: then it is an orphan, which this process watches. It ended while nobody was connected: then
its exit record is on disk. Which of them it is, is found out again with each new connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
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
from jobworker.job import outcome, processes, trimming
from jobworker.job.link import Link
from jobworker.job.orphan import Orphan
from jobworker.job.record import Process
from jobworker.job.state import Event, JobStatus, State, transition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from jobworker import cgroups
    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord
    from jobworker.job.spec import StopPolicy

log = logging.getLogger(__name__)

_LAUNCH_PATIENCE: Final = 60.0
"""Seconds; an execve takes that long only on a file system that hangs."""
_STOP_PATIENCE: Final = 10.0
"""Seconds until the shim has accepted a stop, not until the job has ended."""
_RECONCILE_PATIENCE: Final = 3.0
"""Seconds that a new connection waits for jobs whose execve has not come to an end yet."""


class Custody:
    """Holds the live jobs of a Service.

    `on_running(job, record)` is called when a job has begun to run; if it raises, the launch fails.
    `on_ended(job, record)` is called when one has ended. `abandon(job)` removes a job that turns
    out not to have started. `connect` makes a connection to the shim.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        log_dir: Path,
        cgroups: cgroups.Service,
        on_running: Callable[[Job, JobRecord], None],
        on_ended: Callable[[Job, JobRecord], None],
        abandon: Callable[[Job], Awaitable[None]],
        connect: Callable[..., Awaitable[shim.Client]] | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._cgroups = cgroups
        self._on_running = on_running
        self._on_ended = on_ended
        self._abandon = abandon
        self._jobs: dict[str, Job] = {}
        self._launching: set[str] = set()
        self._pidfds: dict[str, int] = {}
        self._stops: dict[str, tuple[StopPolicy, float]] = {}
        self._orphans: dict[str, Orphan] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._link = Link(
            run_dir, on_ended=self._shim_ended, reconcile=self._reconcile_all, connect=connect
        )

    async def open(self, jobs: list[Job]) -> None:
        """Take up the jobs that were unfinished when last heard of. Raises ShimUnavailable."""
        self._jobs.update({job.id: job for job in jobs})
        await self._link.open()

    async def close(self) -> None:
        """Let go of all jobs; they go on."""
        await self._link.close()
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
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
        return job.id in self._stops or (orphan is not None and orphan.told is not None)

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
        self._stops.pop(job.id, None)
        self._close_pidfd(job)

    async def launch(self, job: Job, launch: shim.Launch, **fds: int) -> None:
        """Have the shim start a job that was added; the descriptors stay the caller's.

        Raises what `shim.Client.launch` raises.
        """
        client = await self._link.client()
        async with _patience(_LAUNCH_PATIENCE, "execute the command"):
            launched = await client.launch(launch, **fds)
        steps.reached("server.start.executed")
        self._adopt(job, launched)
        self._launching.discard(job.id)

    async def stop(self, job: Job, policy: StopPolicy) -> None:
        """Have a running job stopped, and return once it has ended.

        Raises ShimUnavailable if no shim can be reached, Unavailable if nobody knows the job, and
        JobNotFound if it turns out that it has never been started.
        """
        self._note_stop(job, policy)
        steps.reached("server.stop.accepted")
        asked_again = False
        while not job.finished:
            if (orphan := self._orphans.get(job.id)) is not None:
                orphan.stop(policy)
                break
            client = await self._link.client()
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
        await job.wait()

    def _note_stop(self, job: Job, policy: StopPolicy) -> None:
        """Remember a stop, and when it kills: another may bring that nearer, never put it off."""
        kill_at = asyncio.get_running_loop().time() + policy.grace
        if (known := self._stops.get(job.id)) is not None:
            kill_at = min(kill_at, known[1])
        self._stops[job.id] = (policy, kill_at)

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
        process = Process(
            boot_id=processes.boot_id(), pid=launched.pid, start_time=launched.start_time
        )
        status = JobStatus(transition(job.status.state, Event.START))
        self._on_running(
            job,
            replace(job.record, status=status, process=process, started_at=launched.started_at),
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
        tasks = [
            asyncio.create_task(self._reconcile_one(job, client))
            for job in self._jobs.values()
            if job.id not in self._launching and job.id not in self._orphans
        ]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_RECONCILE_PATIENCE)
            for task in late:
                self._keep(task)

    async def _reconcile_one(self, job: Job, client: shim.Client) -> None:
        try:
            await self._reconcile(job, client)
        except ShimUnavailable:
            pass  # The next connection asks again.
        except Exception:
            # One job that cannot be understood must not keep the others from being served.
            log.exception("cannot find out what became of job %s", job.id)

    async def _reconcile(self, job: Job, client: shim.Client) -> None:
        steps.reached("server.recovery.reconciling")
        if job.id in client.jobs:
            try:
                self._adopt(job, await client.attach(job.id))
            except JobNotFound:
                pass  # It has ended since: the event has come, or its record is on disk.
            except LaunchFailed:
                await self._abandon(job)
                return
            else:
                return
        if job.finished:
            return
        process = job.record.process
        pidfd = self._pidfds.pop(job.id, None)
        if pidfd is None and process is not None:
            pidfd = processes.open_pidfd(process)
        if pidfd is None or processes.has_ended(pidfd):
            end, _ = self._read_end(job)
            if end is not None:
                if pidfd is not None:
                    os.close(pidfd)
                self._conclude(job, end)
                return
            if job.status.state is State.PENDING and not self._has_begun(job):
                await self._abandon(job)
                return
        self._watch_orphan(job, pidfd)

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

    def _has_begun(self, job: Job) -> bool:
        """Whether the command of a pending job has left traces of having been executed."""
        written = job.output_size() or job.stderr_size()
        return self._cgroups.cgroup(job.id).populated() or bool(written)

    # Orphans

    def _watch_orphan(self, job: Job, pidfd: int | None) -> None:
        cgroup = self._cgroups.cgroup(job.id)
        orphan = Orphan(cgroup, pidfd, main_process_known=job.record.process is not None)
        self._orphans[job.id] = orphan
        if job.spec.timeout is not None:
            begun = job.record.started_at or job.record.created_at
            orphan.limit(begun + job.spec.timeout - time.time(), job.spec.stop)
        if (stop := self._stops.get(job.id)) is not None:
            policy, kill_at = stop
            left = kill_at - asyncio.get_running_loop().time()
            orphan.stop(replace(policy, grace=max(left, 0.0)))
        self._keep(asyncio.create_task(self._await_orphan(job, orphan)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _await_orphan(self, job: Job, orphan: Orphan) -> None:
        async with trimming.keep_trimmed(self._log_dir, job.record):
            await orphan.wait_ended()
        del self._orphans[job.id]
        # The shim may have been alive all the time, and only out of reach.
        end, trouble = self._read_end(job)
        if end is not None:
            self._conclude(job, end)
            return
        usage = self._usage(job)
        left = self._remove_cgroup(job)
        status = outcome.conclude_orphan(job.record, orphan.told, processes.boot_id())
        message = "; ".join(part for part in (status.message, trouble, left) if part)
        self._finish(
            job,
            replace(
                job.record,
                status=replace(status, message=message),
                ended_at=time.time(),
                output_size=job.output_size() or 0,
                stderr_size=job.stderr_size(),
                usage=usage,
            ),
        )

    def _usage(self, job: Job) -> dict[str, int]:
        try:
            return self._cgroups.cgroup(job.id).usage()
        except (OSError, ValueError):
            log.exception("cannot read what job %s has used", job.id)
            return {}

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
