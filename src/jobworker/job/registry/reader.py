"""Reads pages of a listing from the registry, in a thread and through a connection of its own.

However many jobs there are, the event loop goes on, and no read is open long enough to keep the
write-ahead log from being emptied (https://www.sqlite.org/wal.html, "Avoiding Excessively Large WAL
Files").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from jobworker.job.registry import database, listing, rows
from jobworker.job.registry.listing import Position
from jobworker.job.threads import Threads

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

    from jobworker.job.record import JobRecord
    from jobworker.job.registry.listing import JobFilter, Query, Walk

MAX_SCANNED: Final = 5_000
"""How many jobs are looked at for one page, whether they match or not."""
MAX_BYTES: Final = 1024 * 1024
"""How large the jobs of one page may be together, as they are stored."""
_PATIENCE: Final = 5.0
"""Seconds that a reader waits for a lock; in WAL mode only a recovery takes one."""

_BODY: Final = ("spec", "limits", "warnings", "message", "usage")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Found:
    """A page as the registry has it; `end` is where the next one begins, None after the last."""

    records: list[JobRecord]
    end: Position | None


class RegistryReader:
    """Reads listings. One at a time: others wait for their turn."""

    def __init__(self, path: Path, *, scanned: int = MAX_SCANNED, size: int = MAX_BYTES) -> None:
        self._path = path
        self._scanned = scanned
        self._size = size
        self._connection: sqlite3.Connection | None = None
        self._thread = Threads(1, "registry")

    def close(self) -> None:
        """Let the page that is being read come to its end, and close the file."""
        self._thread.shutdown(cancel_futures=True)
        if self._connection is not None:
            self._connection.close()

    async def run(self, action: Callable[..., _Result], *arguments: object) -> _Result:
        """Call something in the reader's thread."""
        return await self._thread.run(action, *arguments)

    async def page(self, asked: JobFilter, position: Position | None, count: int) -> Found:
        """Return the next page: at most `count` jobs, fewer if finding or sending them is much.

        Raises ResourceExhausted, Unavailable or RegistryDamaged.
        """
        return await self.run(self.read_page, asked, position, count)

    def read_page(self, asked: JobFilter, position: Position | None, count: int) -> Found:
        """Do so, in the thread that calls."""
        with database.translated("read", self._path):
            connection = self._connected()
            connection.execute("BEGIN")  # One snapshot for all the queries of a page.
            try:
                return self._read(connection, asked, position, count)
            finally:
                connection.execute("ROLLBACK")

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = database.connect(self._path, patience=_PATIENCE, read_only=True)
        return self._connection

    def _read(
        self,
        connection: sqlite3.Connection,
        asked: JobFilter,
        position: Position | None,
        count: int,
    ) -> Found:
        walk = self._shortest(connection, asked, position)
        positions, end = self._positions(connection, asked, walk, position, count)
        records: list[JobRecord] = []
        size = 0
        for number, at in positions.items():
            if len(records) == count:
                return Found(records, Position.of(records[-1]))
            row = _job(connection, number, at)
            size += sum(len(row[column]) for column in _BODY)
            if records and size > self._size:
                return Found(records, Position.of(records[-1]))
            records.append(rows.record(row))
        return Found(records, end)

    def _shortest(
        self, connection: sqlite3.Connection, asked: JobFilter, position: Position | None
    ) -> Walk:
        walks = listing.walks(asked)
        if len(walks) == 1:
            return walks[0]

        def length(walk: Walk) -> int:
            query = listing.length(asked, walk, position, self._scanned)
            ((count,),) = _execute(connection, query)
            return int(count)

        return min(walks, key=length)

    def _positions(
        self,
        connection: sqlite3.Connection,
        asked: JobFilter,
        walk: Walk,
        position: Position | None,
        count: int,
    ) -> tuple[dict[int, Position], Position | None]:
        """Return where `count` matching jobs and one more are, by number, and where to go on."""
        positions: dict[int, Position] = {}
        scanned, step = 0, count + 1
        while len(positions) <= count:
            if scanned >= self._scanned:
                return positions, position
            step = min(step, self._scanned - scanned)
            found = _execute(connection, listing.candidates(asked, walk, position, step))
            positions |= {
                number: Position(at, job_id) for at, job_id, matches, number in found if matches
            }
            if len(found) < step:
                return positions, None
            position = Position(*found[-1][:2])
            scanned += step
            step *= 4
        return positions, None


def _job(connection: sqlite3.Connection, number: int, position: Position) -> sqlite3.Row:
    query = connection.execute("SELECT * FROM jobs WHERE number = ?", (number,))
    row: sqlite3.Row | None = query.fetchone()
    if row is None or Position(row["created_at"], row["id"]) != position:
        raise ValueError(f"job {position.id} is not where an index has it")
    return row


def _execute(connection: sqlite3.Connection, query: Query) -> list[Any]:
    return connection.execute(query.sql, query.values).fetchall()
