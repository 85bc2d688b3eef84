"""Changing the limits of running jobs, so that the registry has those that are in force."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from jobworker.errors import FailedPrecondition
from jobworker.job.event import EventType
from jobworker.job.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobworker import cgroups
    from jobworker.job.job import Job
    from jobworker.job.ledger import Ledger
    from jobworker.job.news import News
    from jobworker.job.threads import Threads

log = logging.getLogger(__name__)


class Updating:
    """Updates limits of the jobs of a Service; for one job, one update at a time."""

    def __init__(
        self, cgroups: cgroups.Service, ledger: Ledger, news: News, threads: Threads
    ) -> None:
        self._cgroups = cgroups
        self._ledger = ledger
        self._news = news
        self._threads = threads

    async def update(self, job: Job, limits: cgroups.Limits, user: str) -> None:
        """Apply `limits` to a job that runs. See `Service.update_limits`."""
        # In a thread: the kernel may have to reclaim gigabytes before it answers.
        changed = await self._threads.run(self._cgroups.update_limits, job.id, limits)
        if job.finished:
            raise FailedPrecondition(f"cannot change the limits of job {job.id}: it has ended")
        warnings = self._cgroups.warnings(changed.limits)
        record = replace(job.record, limits=changed.limits, warnings=warnings)
        try:
            self._ledger.update(record, EventType.LIMITS_UPDATED, user)
        except BaseException:
            await self._threads.run(changed.undo)
            self.release_protection()
            raise
        self._news.limits_updated(job, record, user)

    def read_again(self, jobs: Iterable[Job]) -> None:
        """Record the limits that are in force: an earlier server may have died changing some."""
        for job in jobs:
            try:
                limits = self._cgroups.cgroup(job.id).limits()
            except (OSError, ValueError):
                log.exception("cannot read the limits of job %s", job.id)
                continue
            if job.status.state is State.RUNNING and limits != job.record.limits:
                warnings = self._cgroups.warnings(limits)
                job.publish(replace(job.record, limits=limits, warnings=warnings))
                self._ledger.update(job.record, EventType.LIMITS_UPDATED)

    def release_protection(self) -> None:
        """Protect no memory any more for jobs that have ended."""
        try:
            self._cgroups.release_protection()
        except (OSError, ValueError):
            log.exception("memory that ended jobs had protected stays so; trying again later")
