"""Watchers of events: each reads from the table at its own pace, and all are woken by what is new.

Nothing is queued for a watcher: one that stands still is a position, and at most a batch of events.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobworker.errors import JobNotFound, ShuttingDown
from jobworker.ids import parse_job_id
from jobworker.job.event import EventType, Told
from jobworker.job.registry.event_log import WINDOW

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from jobworker.job.registry.event_log import EventLog


class Watching:
    """Tells watchers what `events` has; `knows` says whether there is a job with an id.

    It belongs to one event loop, and to the thread that writes the events.
    """

    def __init__(self, events: EventLog, knows: Callable[[str], bool]) -> None:
        self._events = events
        self._knows = knows
        self._news = asyncio.Event()
        self._closed = False

    def wake(self) -> None:
        """Have all watchers look for what is new."""
        self._news.set()
        self._news = asyncio.Event()

    def close(self) -> None:
        """End all watching with ShuttingDown; the table is not read any more."""
        self._closed = True
        self.wake()

    async def watch(
        self, resume_token: str = "", *, job_id: str = "", owner: str = ""
    ) -> AsyncGenerator[Told, None]:
        """Yield the events after a position: all, those of a job, or those of an owner's jobs.

        Without a token it begins now, and says at once where that is. A position without an event
        comes too where many events have been left out. It goes on until the watcher leaves; of one
        job, until that was removed.

        Raises InvalidArgument (the id or the token is malformed, or of another registry),
        JobNotFound, EventsExpired (also later, if the watcher is too slow) and ShuttingDown.
        """
        if job_id:
            job_id = parse_job_id(job_id)
        self._check_open()
        if resume_token:
            told = position = self._events.find(resume_token)
        else:
            if job_id and not self._knows(job_id):
                raise JobNotFound(job_id)
            told = position = self._events.end()
            yield Told(position.token())
        while True:
            self._check_open()
            news = self._news
            batch = self._events.read(position, job_id=job_id, owner=owner)
            for at, event in batch.events:
                told = at
                yield Told(told.token(), event)
                if job_id and event.type is EventType.REMOVED:
                    return
            position = batch.reached
            if position.sequence - told.sequence >= WINDOW:
                told = position
                yield Told(told.token())
            if not batch.last:
                await asyncio.sleep(0)  # Others have their turn, however long the way is.
            elif not batch.events:
                if job_id and not self._knows(job_id):
                    # Removed before the position, or never started after all.
                    raise JobNotFound(job_id)
                await news.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("cannot watch jobs: the server is shutting down")
