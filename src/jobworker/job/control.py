"""What is asked of jobs that live: to end, to be waited for, to get a signal."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from signal import pidfd_send_signal
from typing import TYPE_CHECKING

from jobworker.errors import FailedPrecondition
from jobworker.exhaustion import exhausted
from jobworker.job.event import EventType
from jobworker.job.spec import check_seconds, check_signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobworker import cgroups
    from jobworker.job.custody import Custody
    from jobworker.job.job import Job
    from jobworker.job.news import News
    from jobworker.job.state import JobStatus


class Control:
    """Stops, waits for and signals the jobs of a Service.

    `fetch` finds a job, and `fetch_started` one whose launch, if it is under way, has come to an
    end.
    """

    def __init__(
        self,
        custody: Custody,
        cgroups: cgroups.Service,
        news: News,
        *,
        fetch: Callable[[str], Awaitable[Job]],
        fetch_started: Callable[[str], Awaitable[Job]],
    ) -> None:
        self._custody = custody
        self._cgroups = cgroups
        self._fetch = fetch
        self._fetch_started = fetch_started
        self._news = news

    async def stop(self, job_id: str, grace: float | None, signum: int | None, user: str) -> Job:
        """See `Service.stop_job`."""
        if grace is not None:
            check_seconds("grace", grace)
        if signum is not None:
            check_signal("signal", signum)
        job = await self._fetch_started(job_id)
        if not job.finished:
            policy = job.spec.stop
            policy = policy if grace is None else replace(policy, grace=grace)
            policy = policy if signum is None else replace(policy, signal=signum)
            self._news.asked(EventType.STOPPING, job, user, policy.signal)
            await self._custody.stop(job, policy)
        return job

    async def wait(self, job_id: str, timeout: float | None) -> JobStatus:  # noqa: ASYNC109 - it is no failure
        """See `Service.wait_job`."""
        if timeout is not None:
            check_seconds("timeout", timeout)
        job = await self._fetch(job_id)
        try:
            async with asyncio.timeout(timeout):
                return await job.wait()
        except TimeoutError:
            return job.status

    async def signal(self, job_id: str, signum: int, user: str, *, all_processes: bool) -> Job:
        """See `Service.signal_job`."""
        check_signal("signal", signum)
        job = await self._fetch_started(job_id)
        what = f"signal job {job.id}"
        if job.finished:
            raise FailedPrecondition(f"cannot {what}: it has ended")
        try:
            # Not in a thread: it takes microseconds for a process, and nothing can come in between.
            self._send(job, signum, what, all_processes=all_processes)
        except ProcessLookupError:
            raise FailedPrecondition(f"cannot {what}: its main process has ended") from None
        except (OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise exhausted(what, number) or FailedPrecondition(
                f"cannot {what}: {error}"
            ) from error
        self._news.asked(EventType.SIGNALED, job, user, signum)
        return job

    def _send(self, job: Job, signum: int, what: str, *, all_processes: bool) -> None:
        main = self._custody.main_process(job)
        if all_processes:
            if not self._cgroups.cgroup(job.id).signal(signum, main=main):
                raise FailedPrecondition(f"cannot {what}: no process is left of it")
        elif main is None:
            raise FailedPrecondition(
                f"cannot {what}: it is not known which of its processes is the main one, because "
                "its shim died while it was started; signal all of them instead (all, or --all)"
            )
        else:
            pidfd_send_signal(main, signum)
