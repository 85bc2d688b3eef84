"""Writes down what happens to jobs: what changes in the registry, and the event that tells of it.

Both are one transaction, so a server that dies at any instant has written both or neither. What
leaves no other trace there (a stop, a pause, a signal) must work while the disk is full: then its
event is missing. An end is never missing: it is tried again until the registry has it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from jobworker import steps
from jobworker.errors import JobWorkerError
from jobworker.job.event import EventType, JobEvent
from jobworker.job.registry.event_log import EventLog
from jobworker.job.state import JobStatus, State
from jobworker.job.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord
    from jobworker.job.registry.store import Store

log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 30.0
"""Seconds until an end that could not be written is tried again."""


@dataclass(frozen=True, slots=True)
class _End:
    """An end that has to be written, and the events that tell of it."""

    job: Job
    record: JobRecord
    events: list[JobEvent]


class Ledger:
    """Keeps the registry `store` and its events in step, and wakes who watches.

    `knows` says whether there is a job with an id. `first_retry` is in seconds.
    """

    def __init__(
        self, store: Store, knows: Callable[[str], bool], *, first_retry: float = _FIRST_RETRY
    ) -> None:
        self._store = store
        self._events = EventLog(store)
        self.watching = Watching(self._events, knows)
        self._first_retry = first_retry
        self._unwritten: dict[str, _End] = {}
        self._retrying: asyncio.Task[None] | None = None

    def update(self, record: JobRecord, event: EventType, user: str = "") -> None:
        """Replace what is known of a job because of `event`. Raises what the store raises."""
        with self._store.transaction():
            self._store.update(record)
            self._events.append(JobEvent.of(event, record, now=time.time(), user=user))
        self.watching.wake()

    def tell(self, event: EventType, record: JobRecord, user: str = "", *, signal: int = 0) -> None:
        """Write down what changes nothing in the registry; if that is impossible, go on without."""
        told = JobEvent.of(event, record, now=time.time(), user=user)
        try:
            with self._store.transaction():
                self._events.append(replace(told, signal=signal))
        except (sqlite3.Error, JobWorkerError):
            log.exception("who watches is not told that job %s is %s", record.id, event)
        self.watching.wake()

    def end(self, job: Job, record: JobRecord) -> None:
        """Write a job's end, as `record` has it, now or as soon as that is possible.

        If its beginning was not seen, that is written too.
        """
        now = time.time()
        events = [JobEvent.of(EventType.ENDED, record, now=now)]
        if job.status.state is State.PENDING:  # Its end has overtaken the news that it runs.
            began = JobEvent.of(EventType.STARTED, record, now=now, user=record.owner)
            events.insert(0, replace(began, status=JobStatus(State.RUNNING)))
        end = _End(job, record, events)
        try:
            self._write(end)
            steps.reached("server.end.recorded")
        except (sqlite3.Error, JobWorkerError):
            log.exception("cannot record the end of job %s now; trying again", job.id)
            self._unwritten[job.id] = end
            if self._retrying is None:
                self._retrying = asyncio.create_task(self._retry())

    def unwritten(self, job_id: str) -> Job | None:
        """Return a job that has ended, if the registry does not know of that yet."""
        end = self._unwritten.get(job_id)
        return None if end is None else end.job

    def all_unwritten(self) -> list[Job]:
        """Return all jobs that have ended without the registry's knowing."""
        return [end.job for end in self._unwritten.values()]

    def tell_removal(self, record: JobRecord, user: str = "") -> None:
        """Add the event to the open transaction that forgets a job; then call `removed`."""
        end = self._unwritten.get(record.id)
        for event in end.events if end is not None else ():
            self._events.append(event)
        self._events.append(JobEvent.of(EventType.REMOVED, record, now=time.time(), user=user))

    def removed(self, job_id: str) -> None:
        """Note that a job is forgotten: of its end nothing is left to be written."""
        self._unwritten.pop(job_id, None)
        self.watching.wake()

    def _write(self, end: _End) -> None:
        with self._store.transaction():
            if self._store.finish(end.record):
                for event in end.events:
                    self._events.append(event)
        self.watching.wake()

    async def _retry(self) -> None:
        delay = self._first_retry
        while self._unwritten:
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)
            self._write_rest()
        self._retrying = None

    def _write_rest(self) -> None:
        with suppress(sqlite3.Error, JobWorkerError):
            for job_id, end in list(self._unwritten.items()):
                self._write(end)
                del self._unwritten[job_id]
                log.info("the end of job %s is recorded now", job_id)

    async def close(self) -> None:
        """Write what can be written; the next start finds the rest in the exit records."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)
        self._write_rest()
        self.watching.close()
