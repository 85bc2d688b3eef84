"""The registry: one row for each job in SQLite, so that the server can be derived again from it.

Write-ahead logging with ``synchronous=NORMAL``: a commit survives the death of the process at any
instant; the last ones before a power failure may be missing, but then so are the processes, and
the exit records of jobs that ended are files of their own (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from jobworker.errors import ConfigError, RegistryDamaged, RequestConflict
from jobworker.job.registry import database, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from jobworker.job.record import JobRecord

BUSY_PATIENCE: Final = 0.5
"""Seconds that a foreign lock on the file may hold up the server."""


class Store:
    """Writes, and reads of single jobs. Calls are short and synchronous; one thread uses it.

    Every call raises ResourceExhausted if the file system is full, Unavailable if the file is
    locked or out of reach, and RegistryDamaged if it cannot be read.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, patience: float = BUSY_PATIENCE) -> Self:
        """Open the registry, or create it (0600); wait `patience` seconds for a foreign lock.

        Raises ConfigError if it cannot be used as is.
        """
        return cls(path, database.open_file(path, patience=patience))

    def close(self) -> None:
        """Close the file. Nothing is lost by not calling this."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block writes through this store as a whole, or nothing if it raises."""
        with database.translated("write", self.path), database.transaction(self._connection):
            yield

    def insert(self, record: JobRecord, stdin_digest: str) -> None:
        """Add a job; `stdin_digest` stands for its standard input, which is not kept.

        Raises RequestConflict if its owner has used the request_id.
        """
        try:
            self.write(rows.INSERT, rows.values(record, stdin_digest))
        except sqlite3.IntegrityError:
            raise RequestConflict(
                f"request_id {record.spec.request_id!r} belongs to another job"
            ) from None

    def update(self, record: JobRecord) -> None:
        """Replace what is known of a job."""
        self.write(rows.UPDATE, {"id": record.id} | rows.changing(record))

    def finish(self, record: JobRecord) -> bool:
        """Replace what is known of a job that has ended; False if that was known, or it is gone."""
        values = {"id": record.id} | rows.changing(record)
        return self.write(f"{rows.UPDATE} AND output_size IS NULL", values) > 0

    def delete(self, job_id: str) -> None:
        """Forget a job; one that is not there is forgotten already."""
        self.write("DELETE FROM jobs WHERE id = :id", {"id": job_id})

    def get(self, job_id: str) -> JobRecord | None:
        """Return a job, or None."""
        with database.translated("read", self.path):
            found = self.read("SELECT * FROM jobs WHERE id = :id", {"id": job_id})
            return rows.record(found[0]) if found else None

    def unfinished(self) -> list[JobRecord]:
        """Return the jobs that were pending or running when last heard of.

        Raises ConfigError if the registry is damaged.
        """
        try:
            with database.translated("read", self.path):
                found = self.read(database.UNFINISHED, {})
                return [rows.record(row) for row in found]
        except RegistryDamaged as error:
            raise ConfigError(database.unusable(self.path, error.__cause__)) from error

    def find_request(self, owner: str, request_id: str) -> tuple[JobRecord, str] | None:
        """Return the job that a user's request_id started, and the digest of its stdin."""
        with database.translated("read", self.path):
            found = self.read(
                "SELECT * FROM jobs WHERE owner = :owner AND request_id = :request_id",
                {"owner": owner, "request_id": request_id},
            )
            return (rows.record(found[0]), found[0]["stdin_digest"]) if found else None

    def read(self, query: str, values: dict[str, Any]) -> list[sqlite3.Row]:
        """Return the rows of a query, which have to be few."""
        with database.translated("read", self.path):
            return self._connection.execute(query, values).fetchall()

    def write(self, statement: str, values: dict[str, Any]) -> int:
        """Execute a statement, which is committed at once unless a transaction is open.

        Returns how many rows it has changed. Raises sqlite3.IntegrityError.
        """
        with database.translated("write", self.path):
            return self._connection.execute(statement, values).rowcount

    def write_many(self, statement: str, values: Iterable[dict[str, Any]]) -> None:
        """Execute a statement for each of `values`. Raises sqlite3.IntegrityError."""
        with database.translated("write", self.path):
            self._connection.executemany(statement, values)
