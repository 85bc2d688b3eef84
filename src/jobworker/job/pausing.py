"""Pausing and resuming running jobs; one that is to end is not paused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jobworker.errors import FailedPrecondition
from jobworker.job import freezer
from jobworker.job.event import EventType

if TYPE_CHECKING:
    from jobworker import cgroups
    from jobworker.job.custody import Custody
    from jobworker.job.job import Job
    from jobworker.job.news import News

log = logging.getLogger(__name__)


class Pausing:
    """Pauses and resumes the jobs of a Service."""

    def __init__(self, custody: Custody, cgroups: cgroups.Service, news: News) -> None:
        self._custody = custody
        self._cgroups = cgroups
        self._news = news

    async def pause(self, job: Job, user: str) -> None:
        """Freeze a job that runs. See `Service.pause_job`."""
        cgroup = self._cgroups.cgroup(job.id)
        self._refuse_if_stopping(job)
        changed = await freezer.set_frozen(cgroup, frozen=True)
        if self._custody.is_stopping(job):
            # A stop has come meanwhile: its grace period is for ending, not for standing still.
            await freezer.set_frozen(cgroup, frozen=False)
            self._refuse_if_stopping(job)
        if changed:
            self._news.asked(EventType.PAUSED, job, user)

    async def resume(self, job: Job, user: str) -> None:
        """Let a job go on. See `Service.resume_job`."""
        if await freezer.set_frozen(self._cgroups.cgroup(job.id), frozen=False):
            self._news.asked(EventType.RESUMED, job, user)

    async def finish(self, job: Job) -> None:
        """Bring a pause that an earlier server began to one of its two ends."""
        try:
            await freezer.finish_freezing(self._cgroups.cgroup(job.id))
        except (OSError, ValueError):
            log.exception("cannot tell whether job %s is paused", job.id)

    def _refuse_if_stopping(self, job: Job) -> None:
        if self._custody.is_stopping(job):
            raise FailedPrecondition(f"cannot pause job {job.id}: it is being stopped")
