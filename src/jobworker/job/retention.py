"""Which finished jobs have to go: by age, by their number, by the disk they take. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from jobworker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

DAY: Final = 86_400.0
DEFAULT_KEEP_FOR: Final = 30 * DAY
DEFAULT_KEEP_JOBS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished jobs are kept; None where there is no such bound.

    `keep_for` is seconds since a job's end, `keep_jobs` how many finished jobs there may be, and
    `keep_bytes` how much disk their directories may take together, as the file system counts it.
    """

    keep_for: float | None = DEFAULT_KEEP_FOR
    keep_jobs: int | None = DEFAULT_KEEP_JOBS
    keep_bytes: int | None = None

    def check(self) -> None:
        """Raise ConfigError for a bound that no job could keep to."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value <= 0:
                raise ConfigError(f"{field.name} is {value:g}: it must be more than 0")


KEEP_ALL: Final = Retention(keep_for=None, keep_jobs=None, keep_bytes=None)


@dataclass(frozen=True, slots=True)
class Totals:
    """All finished jobs together: how many, and the bytes of disk they take."""

    jobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished job: when it ended (seconds since the epoch), and the bytes of disk it takes."""

    id: str
    ended_at: float
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The jobs of a batch that have to go, and those that would have to if they were not held.

    `more` says whether the jobs that ended later have to be looked at as well. `due` is when the
    first job that may stay becomes too old, None if that is never.
    """

    remove: tuple[str, ...]
    held: frozenset[str]
    more: bool
    due: float | None = None


def choose(
    retention: Retention,
    totals: Totals,
    batch: Iterable[Candidate],
    *,
    now: float,
    held: Collection[str] = (),
) -> Choice:
    """Return which jobs of `batch`, the one that ended first first, have to go.

    Those that are `held` stay, and no later one goes in their place: a bound may be exceeded by
    them, but a reader that stands still costs nobody else's job.
    """
    remove: list[str] = []
    staying: set[str] = set()
    jobs, size = totals.jobs, totals.bytes
    for job in batch:
        too_old = retention.keep_for is not None and now >= job.ended_at + retention.keep_for
        too_many = retention.keep_jobs is not None and jobs > retention.keep_jobs
        too_large = retention.keep_bytes is not None and size > retention.keep_bytes
        if not (too_old or too_many or too_large):
            due = None if retention.keep_for is None else job.ended_at + retention.keep_for
            return Choice(tuple(remove), frozenset(staying), more=False, due=due)
        if job.id in held:
            staying.add(job.id)
        else:
            remove.append(job.id)
        jobs -= 1
        size -= job.disk_bytes
    return Choice(tuple(remove), frozenset(staying), more=True)
