"""The table of events in the registry: appending, pruning, and reading on from a position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from jobworker.errors import EventsExpired, InvalidArgument
from jobworker.job.event import LARGEST, EventType, JobEvent, Position
from jobworker.job.state import JobStatus

if TYPE_CHECKING:
    import sqlite3

    from jobworker.job.registry.store import Store

KEPT: Final = 100_000
"""How many events are kept, the newest ones; about 30 MB."""
_PRUNED_AT: Final = 64
"""How many events come between two prunings."""
BATCH: Final = 32
"""How many events a watcher holds at most that its client has not taken."""
WINDOW: Final = 2_000
"""How many events are looked through at a time for those that a watcher wants."""

_INSERT: Final = (
    "INSERT INTO events (type, time, job_id, owner, name, status, user, signal)"
    " VALUES (:type, :time, :job_id, :owner, :name, :status, :user, :signal)"
)


class Batch(NamedTuple):
    """Events with the positions after them, and the position that was looked at last."""

    events: list[tuple[Position, JobEvent]]
    reached: Position
    last: bool
    """Whether there are no events after it."""


class EventLog:
    """The events that the registry `store` keeps.

    Calls are short and synchronous, and raise what the store raises. Whoever appends has opened the
    transaction that also changes the job; nobody reads while one is open.
    """

    def __init__(self, store: Store, *, kept: int = KEPT) -> None:
        self._store = store
        self._kept = kept
        row = self._one("SELECT id FROM event_registry")
        self._registry: str = "" if row is None else row["id"]

    def append(self, event: JobEvent) -> None:
        """Add an event as the last one, and now and then forget the oldest ones."""
        values = {
            "type": event.type.value,
            "time": event.time,
            "job_id": event.job_id,
            "owner": event.owner,
            "name": event.name,
            "status": msgspec.json.encode(event.status).decode(),
            "user": event.user,
            "signal": event.signal,
        }
        self._store.write(_INSERT, values)
        (sequence,) = self._one("SELECT last_insert_rowid()")
        if sequence % _PRUNED_AT == 0:
            self._store.write(
                "DELETE FROM events WHERE sequence <= :oldest", {"oldest": sequence - self._kept}
            )

    def end(self) -> Position:
        """Return the position after the last event."""
        return self._before(LARGEST)

    def find(self, token: str) -> Position:
        """Return the position that a resume token means.

        Raises InvalidArgument if it is none, or another registry's, and EventsExpired if the
        events after it are not all there.
        """
        position = Position.parse(token)
        if position.registry != self._registry:
            raise InvalidArgument(
                "resume_token",
                "is of another registry than this server has now; list the jobs, and watch from "
                "now on",
            )
        if position.sequence == 0:
            return self._position(0, 0)
        row = self._one(
            "SELECT sequence, time FROM events WHERE sequence = :sequence",
            sequence=position.sequence,
        )
        if row is None or self._position(*row) != position:
            raise self._expired()
        return position

    def read(self, after: Position, *, job_id: str = "", owner: str = "") -> Batch:
        """Return the next events after a position: of a job, of an owner's jobs, or all.

        There may be none of them, and more after `reached`. Raises EventsExpired if events after
        the position have been pruned.
        """
        row = self._one("SELECT sequence FROM events ORDER BY sequence LIMIT 1")
        if row is not None and row[0] > after.sequence + 1:
            raise self._expired()
        wanted = "sequence > :after AND sequence <= :until"
        wanted += " AND job_id = :job_id" if job_id else ""
        wanted += " AND owner = :owner" if owner else ""
        end = self.end()
        until = min(after.sequence + WINDOW, end.sequence)
        rows = self._store.read(
            f"SELECT * FROM events WHERE {wanted} ORDER BY sequence LIMIT {BATCH}",  # noqa: S608 - no input in it
            {"after": after.sequence, "until": until, "job_id": job_id, "owner": owner},
        )
        events = [(self._position(row["sequence"], row["time"]), _event(row)) for row in rows]
        reached = events[-1][0] if len(events) == BATCH else self._before(until)
        return Batch(events, reached, last=reached == end)

    def _before(self, sequence: int) -> Position:
        """Return the position after the last event whose number is not larger."""
        row = self._one(
            "SELECT sequence, time FROM events WHERE sequence <= :sequence"
            " ORDER BY sequence DESC LIMIT 1",
            sequence=sequence,
        )
        return self._position(0, 0) if row is None else self._position(*row)

    def _one(self, query: str, **values: int) -> Any:
        return next(iter(self._store.read(query, values)), None)

    def _position(self, sequence: int, time: float) -> Position:
        return Position(self._registry, sequence, round(time * 1e6) & LARGEST)

    def _expired(self) -> EventsExpired:
        return EventsExpired(
            "cannot go on from this resume_token: some of the events after it are gone (the last "
            f"{self._kept} are kept); list the jobs, and watch from now on"
        )


def _event(row: sqlite3.Row) -> JobEvent:
    return JobEvent(
        type=EventType(row["type"]),
        time=row["time"],
        job_id=row["job_id"],
        owner=row["owner"],
        name=row["name"],
        status=msgspec.json.decode(row["status"], type=JobStatus),
        user=row["user"],
        signal=row["signal"],
    )
