"""Keeps to a retention: asks the registry in small steps, after ends and when an age is due."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from jobworker import output
from jobworker.errors import FailedPrecondition, Unavailable
from jobworker.job.attempts import Attempts
from jobworker.job.removal import BATCH
from jobworker.job.retention import choose

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from jobworker.job.job import Job
    from jobworker.job.readers import Readers
    from jobworker.job.registry.ended import EndedJobs
    from jobworker.job.removal import Problems, Removal
    from jobworker.job.retention import Candidate, Retention

log = logging.getLogger(__name__)

SETTLING: Final = 1.0
"""Seconds from one look to the next at least, however many jobs end meanwhile."""
LONGEST_SLEEP: Final = 600.0
"""Seconds: the clock that says how old a job is may be set meanwhile."""
_BREATH: Final = 0.005
"""Seconds between two steps, for whatever else the event loop has to do."""
_ITSELF: Final = ""
"""What stands for the work as a whole among what has failed."""


class Retainer:
    """Removes what a retention does not keep. `run` is its task; `wake` tells it of an end.

    Sizes are measured here too, after the end and off its way, if there is a bound on them.
    `fetch` returns a finished job by its id, `in_thread` runs what may wait for a disk.
    """

    def __init__(
        self,
        retention: Retention,
        *,
        ended: EndedJobs,
        removal: Removal,
        readers: Readers,
        log_dir: Path,
        fetch: Callable[[str], Job | None],
        in_thread: Callable[..., Awaitable[int]],
        settling: float = SETTLING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._retention = retention
        self._ended = ended
        self._removal = removal
        self._readers = readers
        self._log_dir = log_dir
        self._fetch = fetch
        self._in_thread = in_thread
        self._settling = settling
        self._clock = clock
        self._attempts = Attempts()
        self._held: set[str] = set()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look again, soon."""
        self._woken.set()

    def reader_left(self, job_id: str) -> None:
        """Look again if a job had to go that was being read."""
        if job_id in self._held:
            self.wake()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._woken.clear()
            pause = await self._look()
            settled = time.monotonic() + self._settling
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(pause, _BREATH), LONGEST_SLEEP)):
                    await self._woken.wait()
            if self._woken.is_set():
                await asyncio.sleep(settled - time.monotonic())

    async def _look(self) -> float:
        """Do what is due; return the seconds until there is something to do again."""
        now = time.monotonic()
        if _ITSELF in self._attempts.held(now):
            return self._attempts.pause(now) or 0.0
        try:
            await self._finish_removals()
            if self._retention.keep_bytes is not None:
                await self._measure()
            due = await self._remove_old()
        except Exception:
            # Whatever it is, it must not be the last time that somebody looks.
            if self._attempts.failed(_ITSELF, time.monotonic()):
                log.exception("cannot remove old jobs now; trying again later")
            return self._attempts.pause(time.monotonic()) or 0.0
        self._attempts.succeeded(_ITSELF)
        pauses = [self._attempts.pause(time.monotonic())]
        pauses.append(None if due is None else max(0.0, due - self._clock()))
        return min((pause for pause in pauses if pause is not None), default=LONGEST_SLEEP)

    async def _finish_removals(self) -> None:
        while True:
            job_ids, problems = await self._removal.finish(self._skip())
            self._note(job_ids, problems)
            if len(job_ids) < BATCH:
                return
            await asyncio.sleep(_BREATH)

    async def _measure(self) -> None:
        while job_ids := self._ended.unmeasured(BATCH):
            sizes = [
                (job_id, await self._in_thread(_disk_usage, self._log_dir, job_id))
                for job_id in job_ids
            ]
            self._ended.measured(sizes)
            await asyncio.sleep(_BREATH)

    async def _remove_old(self) -> float | None:
        """Remove what has to go; return when the next job becomes too old."""
        self._held.clear()
        failures = 0
        last: Candidate | None = None
        while batch := self._ended.oldest(last, BATCH):
            last = batch[-1]
            choice = choose(
                self._retention,
                self._ended.totals(),
                batch,
                now=self._clock(),
                held=self._readers.job_ids() | self._skip(),
            )
            self._held |= choice.held
            if choice.remove:
                problems = await self._removal.remove_all(choice.remove, self._unread)
                self._note(choice.remove, problems)
                failures += len(problems)
                if failures >= BATCH:
                    raise Unavailable(f"{failures} jobs could not be removed, one after the other")
            if not choice.more:
                return choice.due
            await asyncio.sleep(_BREATH)
        return None

    def _unread(self, job_id: str) -> Job | None:
        """Return a job, unless somebody has begun to read it since it was chosen."""
        if job_id in self._readers.job_ids():
            self._held.add(job_id)
            return None
        return self._fetch(job_id)

    def _skip(self) -> frozenset[str]:
        return self._attempts.held(time.monotonic())

    def _note(self, job_ids: Sequence[str], problems: Problems) -> None:
        for job_id in job_ids:
            problem = problems.get(job_id)
            if problem is None:
                self._attempts.succeeded(job_id)
            elif self._attempts.failed(job_id, time.monotonic()):
                log.warning("cannot remove job %s; trying again later: %s", job_id, problem)


def _disk_usage(log_dir: Path, job_id: str) -> int:
    try:
        return output.disk_usage(log_dir, job_id)
    except FailedPrecondition:
        return 0  # Something else is in its place.
