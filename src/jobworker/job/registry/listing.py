"""Which jobs a listing has: its filters, and the queries that find a page of them. Pure: no I/O.

The order is newest first, by time of acceptance and then by id, so that a page begins where the
one before ended, whatever was added or removed meanwhile. Each query walks one index in that
order, from a position on and no farther than it is told to: what a page costs does not grow with
the registry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from jobworker.errors import InvalidArgument
from jobworker.job.spec import MAX_LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobworker.job.record import JobRecord
    from jobworker.job.state import State

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
"""Jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are asked for; a job has to match all that is set.

    `states`: any of these. `labels`: all of these. `created_after` (at or after) and
    `created_before` are seconds since the epoch.
    """

    states: frozenset[State] = frozenset()
    owner: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: float | None = None
    created_before: float | None = None

    def check(self) -> None:
        """Raise InvalidArgument, naming the field, for what cannot be asked."""
        if len(self.labels) > MAX_LABELS:
            raise InvalidArgument(
                "labels", f"{len(self.labels)} labels; no job has more than {MAX_LABELS}"
            )

    def matches(self, record: JobRecord) -> bool:
        """Whether a job is one of those."""
        spec, at = record.spec, record.created_at
        return (
            (not self.states or record.status.state in self.states)
            and self.owner in ("", record.owner)
            and self.name in ("", spec.name)
            and all(spec.labels.get(key) == value for key, value in self.labels.items())
            and (self.created_after is None or at >= self.created_after)
            and (self.created_before is None or at < self.created_before)
        )


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a listing: that of a job, accepted `created_at` seconds after the epoch."""

    created_at: float
    id: str

    @classmethod
    def of(cls, record: JobRecord) -> Position:
        """Return a job's position."""
        return cls(record.created_at, record.id)

    def sort_key(self) -> tuple[float, str]:
        """Return what positions are ordered by."""
        return (-self.created_at, self.id)


def page_size(asked: int) -> int:
    """Return how many jobs a page may have. Raises InvalidArgument."""
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidArgument("page_size", f"{asked} is not between 0 and {MAX_PAGE}")
    return asked or DEFAULT_PAGE


@dataclass(frozen=True, slots=True)
class Query:
    """A statement for SQLite, and the values of its parameters."""

    sql: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Walk:
    """One way through the registry: an index whose order is the listing's.

    `sources` are the parts of it, as table (with its index) and condition.
    """

    sources: tuple[tuple[str, str], ...]
    fulfils: str
    """The filter that every job on the way matches, a key of `_conditions`; empty: none."""


def walks(asked: JobFilter) -> list[Walk]:
    """Return the ways that lead to all jobs asked for, at least one."""
    found = [
        Walk((("labels", f"key = :{key} AND value = :{value}"),), f"label {index}")
        for index, key, value in _label_names(asked)
    ]
    if asked.name:
        source = ("jobs INDEXED BY jobs_by_name", "name = :name AND name <> ''")
        found.append(Walk((source,), "name"))
    if asked.owner:
        found.append(Walk((("jobs INDEXED BY jobs_by_owner", "owner = :owner"),), "owner"))
    if asked.states:
        sources = [
            ("jobs INDEXED BY jobs_by_state", f"state = :state{index}")
            for index in range(len(asked.states))
        ]
        found.append(Walk(tuple(sources), "states"))
    return found or [Walk((("jobs INDEXED BY jobs_by_time", "TRUE"),), "")]


def length(asked: JobFilter, walk: Walk, position: Position | None, most: int) -> Query:
    """Ask how many jobs are on a way from `position` on, counting to `most` for each part of it."""
    return Query(
        f"SELECT count(*) FROM ({_candidates(asked, walk, position)})",  # noqa: S608
        _values(asked, position) | {"most": most},
    )


def candidates(asked: JobFilter, walk: Walk, position: Position | None, most: int) -> Query:
    """Ask for the next jobs on a way.

    The columns are `created_at`, `id`, whether the job `matches`, and its `number`.
    """
    conditions = [text for key, text in _conditions(asked).items() if key != walk.fulfils]
    found = _candidates(asked, walk, position)
    return Query(
        f"""
        SELECT found.created_at, found.id, {" AND ".join(conditions) or "TRUE"} AS matches,
            found.number
        FROM ({found}) AS found
        {"CROSS JOIN jobs ON jobs.number = found.number" if conditions else ""}
        ORDER BY found.created_at DESC, found.id
        """,  # noqa: S608 - what users have written is among the values
        _values(asked, position) | {"most": most},
    )


def _candidates(asked: JobFilter, walk: Walk, position: Position | None) -> str:
    bounds = ""
    if asked.created_after is not None:
        bounds += " AND created_at >= :created_after"
    if asked.created_before is not None:
        bounds += " AND created_at < :created_before"
    if position is not None:
        # The first half alone would do, but not as a range of the index.
        bounds += " AND created_at <= :at AND (created_at < :at OR id > :id)"
    order = "ORDER BY created_at DESC, id LIMIT :most"
    parts = [
        f"SELECT * FROM (SELECT created_at, id, number FROM {table}"  # noqa: S608
        f" WHERE {condition}{bounds} {order})"
        for table, condition in walk.sources
    ]
    return parts[0] if len(parts) == 1 else f"{' UNION ALL '.join(parts)} {order}"


def _conditions(asked: JobFilter) -> dict[str, str]:
    conditions = {}
    if asked.states:
        names = ", ".join(f":state{index}" for index in range(len(asked.states)))
        conditions["states"] = f"jobs.state IN ({names})"
    if asked.owner:
        conditions["owner"] = "jobs.owner = :owner"
    if asked.name:
        conditions["name"] = "jobs.name = :name"
    for index, key, value in _label_names(asked):
        conditions[f"label {index}"] = (
            f"EXISTS (SELECT 1 FROM labels WHERE key = :{key} AND value = :{value}"  # noqa: S608
            " AND created_at = found.created_at AND id = found.id)"
        )
    return conditions


def _label_names(asked: JobFilter) -> list[tuple[int, str, str]]:
    return [(index, f"key{index}", f"value{index}") for index in range(len(asked.labels))]


def _values(asked: JobFilter, position: Position | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "owner": asked.owner,
        "name": asked.name,
        "created_after": asked.created_after,
        "created_before": asked.created_before,
    }
    for index, state in enumerate(sorted(asked.states, key=lambda state: state.value)):
        values[f"state{index}"] = state.value
    for index, (key, value) in enumerate(sorted(asked.labels.items())):
        values |= {f"key{index}": key, f"value{index}": value}
    if position is not None:
        values |= {"at": position.created_at, "id": position.id}
    return values
