"""Lists jobs: what the registry has of them, and for those that are alive what is known by now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobworker.errors import JobWorkerError
from jobworker.job.registry import listing, tokens
from jobworker.job.registry.listing import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobworker.job.job import Job
    from jobworker.job.record import JobRecord
    from jobworker.job.registry.listing import JobFilter
    from jobworker.job.registry.reader import RegistryReader


@dataclass(frozen=True, slots=True)
class Entry:
    """A job in a listing; sizes (bytes, None if it is gone) and `paused` are as of now."""

    record: JobRecord
    output_size: int | None
    stderr_size: int | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first; `next_page_token` leads to those after them, empty: there are none.

    A page may have fewer jobs than were asked for, or none, and not be the last one.
    """

    entries: tuple[Entry, ...]
    next_page_token: str

    @property
    def records(self) -> tuple[JobRecord, ...]:
        """What is known of each job."""
        return tuple(entry.record for entry in self.entries)


class Catalog:
    """Lists the jobs of a Service.

    `fetch` returns a job as it is now, or None; `unrecorded` returns those whose end the registry
    does not know yet.
    """

    def __init__(
        self,
        reader: RegistryReader,
        *,
        fetch: Callable[[str], Job | None],
        unrecorded: Callable[[], Iterable[Job]],
    ) -> None:
        self._reader = reader
        self._fetch = fetch
        self._unrecorded = unrecorded

    async def page(self, asked: JobFilter, page_size: int, page_token: str) -> Page:
        """Return a page. See `Service.list_jobs`."""
        asked.check()
        count = listing.page_size(page_size)
        begin = tokens.read(page_token, asked) if page_token else None
        found = await self._reader.page(asked, begin, count)
        late = [job for job in self._unrecorded() if job.finished]
        left_out = {job.id for job in late}
        jobs = {
            record.id: self._fetch(record.id) for record in found.records if not record.finished
        }
        current = [
            _current(record, jobs.get(record.id))
            for record in found.records
            if record.id not in left_out
        ]
        records = [record for record in current if record is not None and asked.matches(record)]
        records += [
            job.record
            for job in late
            if asked.matches(job.record) and _between(begin, Position.of(job.record), found.end)
        ]
        records.sort(key=lambda record: Position.of(record).sort_key())
        end = found.end
        if len(records) > count:
            records = records[:count]
            end = Position.of(records[-1])
        entries = await self._reader.run(_entries, records, jobs)
        token = tokens.write(end, asked) if end is not None else ""
        return Page(entries, token)


def _current(record: JobRecord, job: Job | None) -> JobRecord | None:
    if record.finished:
        return record
    return None if job is None else job.record


def _between(begin: Position | None, at: Position, end: Position | None) -> bool:
    return (begin is None or begin.sort_key() < at.sort_key()) and (
        end is None or at.sort_key() <= end.sort_key()
    )


def _entries(records: list[JobRecord], jobs: dict[str, Job | None]) -> tuple[Entry, ...]:
    """Look at the output and the cgroup of live jobs: some system calls each."""
    entries = []
    for record in records:
        job = None if record.finished else jobs.get(record.id)
        if job is None:
            entries.append(Entry(record, record.output_size, record.stderr_size))
        else:
            entries.append(Entry(record, job.output_size(), job.stderr_size(), _paused(job)))
    return tuple(entries)


def _paused(job: Job) -> bool:
    try:
        return job.paused
    except JobWorkerError:
        return False  # Its status says what is wrong; the others are listed all the same.
