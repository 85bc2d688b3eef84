"""Passes on what happens to jobs: to the registry, to who waits, and to who is told of changes."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobworker import steps
from jobworker.errors import JobWorkerError
from jobworker.job.event import EventType
from jobworker.job.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.job.job import Job
    from jobworker.job.ledger import Ledger
    from jobworker.job.record import JobRecord
    from jobworker.job.registry.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that has happened to a job.

    `event` is "started", "stopping" (it was told to stop), "limits updated", "paused", "resumed",
    "signaled", "ended" or "removed"; `user` is who asked for it, empty for an end and for what
    retention does. `signal` is what was sent, by a stop too, and 0 for everything else.
    """

    event: str
    job: Job
    user: str = ""
    signal: int = 0


class News:
    """Tells of the jobs of a Service: first the registry, then who waits, then `on_change`.

    Everything is synchronous: nobody sees a job between two of them.
    """

    def __init__(self, store: Store, ledger: Ledger, on_change: Callable[[Change], None]) -> None:
        self._store = store
        self._ledger = ledger
        self._on_change = on_change

    def started(self, job: Job, record: JobRecord) -> None:
        """A job has begun to run. Raises what the registry raises: then nobody was told."""
        self._ledger.update(record, EventType.STARTED, record.owner)
        steps.reached("server.start.running_recorded")
        job.publish(record)
        self._on_change(Change(EventType.STARTED.value, job, record.owner))

    def stop_accepted(self, job: Job, record: JobRecord) -> None:
        """From now on a job will be stopped, whoever dies. On a full disk it is stopped too."""
        job.publish(record)
        try:
            self._store.update(record)
        except (sqlite3.Error, JobWorkerError):
            # A full disk is no reason to let a job go on; but only this server knows of the stop.
            log.exception("cannot record the stop of job %s in the registry", job.id)

    def ended(self, job: Job, record: JobRecord) -> None:
        """A job has ended; if the registry cannot take that now, it gets it later."""
        if job.status.state is State.PENDING:  # Its end overtook the news that it runs.
            self._on_change(Change(EventType.STARTED.value, job, record.owner))
        self._ledger.end(job, record)
        job.publish(record)
        self._on_change(Change(EventType.ENDED.value, job))
        steps.reached("server.end.told")

    def limits_updated(self, job: Job, record: JobRecord, user: str) -> None:
        """Other limits are in force, and the registry has them."""
        job.publish(record)
        self._on_change(Change(EventType.LIMITS_UPDATED.value, job, user))

    def asked(self, event: EventType, job: Job, user: str, signum: int = 0) -> None:
        """Somebody has had something done to a job that its record does not show."""
        self._ledger.tell(event, job.record, user, signal=signum)
        self._on_change(Change(event.value, job, user, signum))

    def removed(self, job: Job, user: str) -> None:
        """A job is forgotten."""
        self._ledger.removed(job.id)
        self._on_change(Change(EventType.REMOVED.value, job, user))
