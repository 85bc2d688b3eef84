"""The jobs that no shim we speak to has: each is watched to its end, and that is found out."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jobworker.job import outcome, processes
from jobworker.job.custody import trimming
from jobworker.job.custody.endings import Ending, Unknown, find_ending
from jobworker.job.custody.orphan import Orphan
from jobworker.shim.proc import SHIM_NAME, TICKS, read_stat

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker import cgroups, shim
    from jobworker.job.custody.end_notes import EndNotes
    from jobworker.job.custody.remains import Remains
    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord, Process

log = logging.getLogger(__name__)

_POLL: Final = 0.05
"""Seconds between two looks for the exit record of a shim that cannot be spoken to."""


class Orphans:
    """Watches orphans of a Service.

    `on_record(job, record)` is called for an end that a shim has written down, `on_end(job,
    record)` for all others, with the job's final record.
    """

    def __init__(
        self,
        *,
        cgroups: cgroups.Service,
        notes: EndNotes,
        remains: Remains,
        on_record: Callable[[Job, shim.ExitRecord], None],
        on_end: Callable[[Job, JobRecord], None],
    ) -> None:
        self._cgroups = cgroups
        self._notes = notes
        self._remains = remains
        self._on_record = on_record
        self._on_end = on_end
        self._orphans: dict[str, Orphan] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._orphans

    def __len__(self) -> int:
        return len(self._orphans)

    def ids(self) -> list[str]:
        """Return the ids of all jobs that are watched."""
        return list(self._orphans)

    def get(self, job_id: str) -> Orphan | None:
        """Return a job's orphan."""
        return self._orphans.get(job_id)

    async def close(self) -> None:
        """Let go of all; they go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def watch(self, job: Job, pidfd: int | None, *, main_process_known: bool = True) -> None:
        """Take a job, and its main process's pidfd if that has not been reaped."""
        orphan = Orphan(
            self._cgroups.cgroup(job.id),
            pidfd,
            policy=job.spec.stop,
            main_process_known=main_process_known,
        )
        self._orphans[job.id] = orphan
        stop = job.record.stop
        if stop is not None and stop.boot_id == processes.boot_id():
            orphan.accepted(stop.signal, stop.kill_at)
        shim_pidfd = _living_shim(job.record.process)
        task = asyncio.create_task(self._watch(job, orphan, shim_pidfd))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, job: Job, orphan: Orphan, shim_pidfd: int | None) -> None:
        try:
            await self._wait_for_end(job, orphan, shim_pidfd)
        finally:
            orphan.close()
            if shim_pidfd is not None:
                os.close(shim_pidfd)

    async def _wait_for_end(self, job: Job, orphan: Orphan, shim_pidfd: int | None) -> None:
        if shim_pidfd is not None:
            end = await self._wait_for_record(job, shim_pidfd)
            if end is not None:
                self._conclude(job, orphan, end)
                return
        limit = _limit(job)
        if limit is not None:
            orphan.limit(limit)
        async with trimming.keep_trimmed(job.log_dir, job.record):
            await orphan.wait_ended()
            ending = await find_ending(job.record.process, orphan.pidfd, self._notes)
            await orphan.empty()
        # The shim may have been alive all the time, and only out of reach.
        end, trouble = self._remains.read_end(job)
        if end is not None:
            self._conclude(job, orphan, end)
        else:
            self._finish(job, orphan, ending, trouble)

    async def _wait_for_record(self, job: Job, shim_pidfd: int) -> shim.ExitRecord | None:
        """Return a job's exit record, or None if its shim, to which we do not speak, has died."""
        while True:
            died = processes.has_ended(shim_pidfd)
            end, _ = self._remains.read_end(job)
            if end is not None or died:
                return end
            await asyncio.sleep(_POLL)

    def _conclude(self, job: Job, orphan: Orphan, end: shim.ExitRecord) -> None:
        del self._orphans[job.id]
        stopped = end.stopped or orphan.stopped
        self._on_record(
            job, end._replace(stopped=stopped, timed_out=end.timed_out or orphan.timed_out)
        )

    def _finish(self, job: Job, orphan: Orphan, ending: Ending | Unknown, trouble: str) -> None:
        usage = self._usage(job)
        left = self._remains.remove_cgroup(job)
        record = job.record
        ended_at = time.time()
        timed_out = orphan.timed_out
        if isinstance(ending, Ending):
            ended_at = ending.ended_at or ended_at
            limit = _limit(job)
            if limit is not None and ending.ended_boot is not None:
                timed_out = timed_out or ending.ended_boot >= limit
            status = outcome.conclude_ending(
                record,
                exit_code=ending.exit_code,
                signal=ending.signal,
                core_dumped=ending.core_dumped,
                stopped=orphan.stopped,
                timed_out=timed_out,
                usage=usage,
            )
        else:
            status = outcome.conclude_unknown(
                record, stopped=orphan.stopped, timed_out=timed_out, why=ending.why
            )
        message = "; ".join(part for part in (status.message, trouble, left) if part)
        del self._orphans[job.id]
        self._on_end(
            job,
            replace(
                record,
                status=replace(status, message=message),
                ended_at=max(ended_at, record.started_at or record.created_at),
                output_size=job.output_size() or 0,
                stderr_size=job.stderr_size(),
                usage=usage,
            ),
        )
        if record.process is not None:
            self._notes.forget(record.process)

    def _usage(self, job: Job) -> dict[str, int]:
        try:
            return self._cgroups.cgroup(job.id).usage()
        except (OSError, ValueError):
            log.exception("cannot read what job %s has used", job.id)
            return {}


def _limit(job: Job) -> float | None:
    """Return when a job's time is up, in seconds on CLOCK_BOOTTIME."""
    if job.spec.timeout is None:
        return None
    process = job.record.process
    if process is not None:
        # In ticks of that clock: no clock that somebody may set comes in between.
        return process.start_time / TICKS + job.spec.timeout
    return processes.boot_time() + job.record.created_at - time.time() + job.spec.timeout


def _living_shim(process: Process | None) -> int | None:
    """Return a pidfd of the shim that is a process's parent, if that lives.

    It may be of another version, or its socket and its lock may have been removed.
    """
    stat = None if process is None else processes.look(process)
    parent = None if stat is None else read_stat(stat.parent)
    if process is None or parent is None or parent.name != SHIM_NAME or parent.ending:
        return None
    try:
        pidfd = os.pidfd_open(parent.pid)
    except ProcessLookupError:
        return None
    # Only a pidfd that was opened while the shim was the parent is the shim's.
    stat = processes.look(process)
    if stat is not None and stat.parent == parent.pid:
        return pidfd
    os.close(pidfd)
    return None
