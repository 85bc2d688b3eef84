"""Stopping jobs: a stop is recorded, then passed on to whoever has the job by now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jobworker import steps
from jobworker.errors import JobNotFound, ShimUnavailable, Unavailable
from jobworker.job import processes
from jobworker.job.custody import patience
from jobworker.job.record import AcceptedStop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobworker import shim
    from jobworker.job.custody.links import Links
    from jobworker.job.custody.live import LiveJobs
    from jobworker.job.custody.orphans import Orphans
    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord
    from jobworker.job.spec import StopPolicy


class Stops:
    """Stops live jobs.

    `on_stop(job, record)` is called when a stop was accepted. `reconcile` finds out who has a job.
    """

    def __init__(
        self,
        live: LiveJobs,
        links: Links,
        orphans: Orphans,
        *,
        on_stop: Callable[[Job, JobRecord], None],
        reconcile: Callable[[Job, shim.Client], Awaitable[None]],
    ) -> None:
        self._live = live
        self._links = links
        self._orphans = orphans
        self._on_stop = on_stop
        self._reconcile = reconcile
        self._under_way: set[str] = set()

    async def stop(self, job: Job, policy: StopPolicy) -> None:
        """Have a running job stopped, and return once it has ended. See `Custody.stop`."""
        kill_at = processes.boot_time() + policy.grace
        self._accept(job, policy.signal, kill_at)
        steps.reached("server.stop.accepted")
        self._under_way.add(job.id)
        try:
            await self._pass_on(job, policy, kill_at)
        finally:
            self._under_way.discard(job.id)
        await job.wait()

    async def again(self, job: Job, client: shim.Client) -> None:
        """Pass on a stop that was accepted, but that the job's shim has not heard of."""
        stop = job.record.stop
        if job.id in self._under_way or stop is None or stop.boot_id != processes.boot_id():
            return
        grace = max(stop.kill_at - processes.boot_time(), 0.0)
        try:
            await client.stop(job.id, signal=stop.signal, grace=grace)
        except (JobNotFound, ShimUnavailable):
            return  # It has ended, or the next connection does this.

    def _accept(self, job: Job, signum: int, kill_at: float) -> None:
        """Record a stop, and when it kills: another may bring that nearer, never put it off.

        From now on, it is carried out whoever dies.
        """
        known, boot_id = job.record.stop, processes.boot_id()
        if known is not None and known.boot_id == boot_id:
            kill_at = min(kill_at, known.kill_at)
        stop = AcceptedStop(boot_id=boot_id, signal=signum, kill_at=kill_at)
        if not job.finished and job in self._live:
            self._on_stop(job, replace(job.record, stop=stop))

    async def _pass_on(self, job: Job, policy: StopPolicy, kill_at: float) -> None:
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
                async with patience.at_most(patience.STOP, "accept the stop"):
                    await client.stop(job.id, signal=policy.signal, grace=policy.grace)
                steps.reached("server.stop.taken")
                break
            except JobNotFound:
                if job.finished or job not in self._live:
                    break  # It has ended, or was never started: waiting tells.
                if asked_again:
                    raise Unavailable(f"cannot find out what became of job {job.id}") from None
                asked_again = True
                await self._reconcile(job, client)
            except ShimUnavailable:
                if not client.lost:
                    raise
                # With the next connection, it is known who has the job.
