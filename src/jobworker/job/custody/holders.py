"""Finding out who has a job: a shim, nobody (it is an orphan), or its exit record on disk."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from jobworker import steps
from jobworker.errors import JobNotFound, LaunchFailed, ShimUnavailable
from jobworker.job import processes
from jobworker.job.custody import patience
from jobworker.job.custody.main_process import find_main_process, identity, started_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from jobworker import cgroups, shim
    from jobworker.job.custody.end_notes import EndNotes
    from jobworker.job.custody.links import Links
    from jobworker.job.custody.live import LiveJobs
    from jobworker.job.custody.orphans import Orphans
    from jobworker.job.custody.remains import Remains
    from jobworker.job.job import Job
    from jobworker.job.record import Process

log = logging.getLogger(__name__)


class Holders:
    """Gives each live job into the hands that have it, and abandons those that have not started.

    `stop_again(job, client)` passes on a stop that the job's shim may not have heard of. It is
    done beside what is under way here, which does not wait for it.
    """

    def __init__(
        self,
        live: LiveJobs,
        links: Links,
        orphans: Orphans,
        *,
        cgroups: cgroups.Service,
        notes: EndNotes,
        remains: Remains,
        abandon: Callable[[Job], Awaitable[None]],
        stop_again: Callable[[Job, shim.Client], Coroutine[None, None, None]],
    ) -> None:
        self._live = live
        self._links = links
        self._orphans = orphans
        self._cgroups = cgroups
        self._notes = notes
        self._remains = remains
        self._abandon = abandon
        self._stop_again = stop_again
        self._launchers: dict[str, shim.Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Find out nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reconcile_all(self, client: shim.Client) -> None:
        """Ask about all jobs at once; one whose execve hangs is not waited for."""
        await self._keepers_settled(client)
        tasks = [
            asyncio.create_task(self._find_or_log(job, client))
            for job in self._live
            if job.id not in self._live.launching and job.id not in self._orphans
        ]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience.RECONCILE)
            for task in late:
                self._keep(task)
        if not self._live.launching:
            self._notes.sweep(job.record for job in self._live)

    async def reconcile(self, job: Job, client: shim.Client) -> None:
        """Find out who has one job; `client` is the connection to our own shim.

        Raises OSError, ShimUnavailable or what abandoning a job raises.
        """
        await self._keepers_settled(client)
        await self._find(job, client)

    async def reconcile_launch(self, job: Job, launcher: shim.Client) -> None:
        """Find out what became of a launch whose shim, to which `launcher` led, is gone.

        Raises the same.
        """
        self._launchers[job.id] = launcher
        try:
            while True:
                client = await self._links.client()
                try:
                    await self.reconcile(job, client)
                except ShimUnavailable:
                    if not client.lost:
                        raise
                else:
                    return
        finally:
            del self._launchers[job.id]

    async def _find_or_log(self, job: Job, client: shim.Client) -> None:
        try:
            await self._find(job, client)
        except ShimUnavailable:
            pass  # The next connection asks again.
        except Exception:
            # One job that cannot be understood must not keep the others from being served.
            log.exception("cannot find out what became of job %s", job.id)

    async def _keepers_settled(self, client: shim.Client) -> None:
        """Wait until keepers have noted the ends of jobs that no shim has."""
        known = {*client.jobs, *self._orphans.ids()}
        if any(job.id not in known and not self._links.holder(job.id) for job in self._live):
            await self._notes.settled()

    async def _find(self, job: Job, client: shim.Client) -> None:
        steps.reached("server.recovery.reconciling")
        client = self._links.holder(job.id) or client
        if job.id in client.jobs and await self._shim_has(job, client):
            return
        if job.finished:
            return
        if job.record.process is None:
            await self._find_unknown(job)
        else:
            self._find_known(job, job.record.process)

    async def _shim_has(self, job: Job, client: shim.Client) -> bool:
        """Take a job from its shim; return whether that is all there is to do."""
        try:
            launched = await client.attach(job.id)
            self._live.adopt(job, launched)
        except JobNotFound:
            return False  # It has ended since: the event has come, or its record is on disk.
        except LaunchFailed:
            await self._abandon(job)
        else:
            if not launched.stopped:
                self._keep(asyncio.create_task(self._stop_again(job, client)))
        return True

    def _find_known(self, job: Job, process: Process) -> None:
        """Take a job that no shim has by its main process, or by its record if that has ended."""
        pidfd = self._live.take_pidfd(job) or processes.open_pidfd(process)
        if pidfd is None or processes.has_ended(pidfd):
            end, _ = self._remains.read_end(job)
            if end is not None:
                if pidfd is not None:
                    os.close(pidfd)
                self._live.conclude(job, end)
                return
        self._orphans.watch(job, pidfd)

    async def _find_unknown(self, job: Job) -> None:
        """Find out what became of a job whose main process nobody has told us."""
        end, _ = self._remains.read_end(job)
        if end is not None:
            self._live.conclude(job, end)
            return
        cgroup = self._cgroups.cgroup(job.id)
        async with patience.at_most(patience.LAUNCH, "execute the command"):
            main = await find_main_process(cgroup, self._notes)
        if job.finished or job not in self._live:
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
            self._live.begin(job, process, started_at(process))
            self._orphans.watch(job, pidfd)

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
