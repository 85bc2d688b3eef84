"""The registry: one row for each job in SQLite, so that the server can be derived again from it.

Write-ahead logging with ``synchronous=NORMAL``: a commit survives the death of the process at any
instant; the last ones before a power failure may be missing, but then so are the processes, and
the exit records of jobs that ended are files of their own (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from jobworker.cgroups import Limits
from jobworker.errors import ConfigError, RequestConflict, ResourceExhausted, Unavailable
from jobworker.job.record import JobRecord, Process
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA_VERSION: Final = 1
BUSY_PATIENCE: Final = 0.5
"""Seconds that a foreign lock on the file may hold up the server."""

_SCHEMA: Final = """
CREATE TABLE jobs (
    id          TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    request_id  TEXT,
    stdin_digest TEXT NOT NULL,
    spec        TEXT NOT NULL,
    limits      TEXT NOT NULL,
    warnings    TEXT NOT NULL,
    state       TEXT NOT NULL,
    exit_code   INTEGER,
    signal      INTEGER,
    reason      TEXT,
    message     TEXT NOT NULL,
    boot_id     TEXT,
    pid         INTEGER,
    start_time  INTEGER,
    created_at  REAL NOT NULL,
    started_at  REAL,
    ended_at    REAL,
    output_size INTEGER,
    usage       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX jobs_by_request ON jobs (owner, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX jobs_unfinished ON jobs (state) WHERE output_size IS NULL;
"""

_FIXED: Final = ("id", "owner", "request_id", "stdin_digest", "spec", "created_at")
_CHANGING: Final = (
    "limits",
    "warnings",
    "state",
    "exit_code",
    "signal",
    "reason",
    "message",
    "boot_id",
    "pid",
    "start_time",
    "started_at",
    "ended_at",
    "output_size",
    "usage",
)
_INSERT: Final = (
    f"INSERT INTO jobs ({', '.join(_FIXED + _CHANGING)})"  # noqa: S608 - no input in it
    f" VALUES ({', '.join(f':{column}' for column in _FIXED + _CHANGING)})"
)
_UPDATE: Final = (
    f"UPDATE jobs SET {', '.join(f'{column} = :{column}' for column in _CHANGING)}"  # noqa: S608
    " WHERE id = :id"
)


class Store:
    """The registry in one file. Calls are short and synchronous; one thread uses it."""

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=patience)
        self._connection.row_factory = sqlite3.Row

    @classmethod
    def open(cls, path: Path, *, patience: float = BUSY_PATIENCE) -> Self:
        """Open the registry, or create it (0600); wait `patience` seconds for a foreign lock.

        Raises ConfigError if it cannot be used as is.
        """
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            store = cls(path, patience)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot open the registry {path}: {error}") from error
        try:
            store._prepare()
        except sqlite3.Error as error:
            store.close()
            raise ConfigError(_unusable(path, error)) from error
        except ConfigError:
            store.close()
            raise
        return store

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise ConfigError(
                f"cannot use the registry {self._path}: it has schema version {version}, this "
                f"jobworker knows {SCHEMA_VERSION}; run the version that wrote it, or a newer one"
            )

    def close(self) -> None:
        """Close the file. Nothing is lost by not calling this."""
        self._connection.close()

    def insert(self, record: JobRecord, stdin_digest: str) -> None:
        """Add a job; `stdin_digest` stands for its standard input, which is not kept.

        Raises RequestConflict if its owner has used the request_id, ResourceExhausted if the file
        system is full.
        """
        try:
            self._execute(_INSERT, _fixed(record, stdin_digest) | _changing(record))
        except sqlite3.IntegrityError:
            raise RequestConflict(
                f"request_id {record.spec.request_id!r} belongs to another job"
            ) from None

    def update(self, record: JobRecord) -> None:
        """Replace what is known of a job. Raises ResourceExhausted if the file system is full."""
        self._execute(_UPDATE, {"id": record.id} | _changing(record))

    def delete(self, job_id: str) -> None:
        """Forget a job; one that is not there is forgotten already."""
        self._execute("DELETE FROM jobs WHERE id = :id", {"id": job_id})

    def get(self, job_id: str) -> JobRecord | None:
        """Return a job, or None."""
        return next(self._select("id = :id", {"id": job_id}), None)

    def unfinished(self) -> list[JobRecord]:
        """Return the jobs that were pending or running when last heard of.

        Raises ConfigError if the registry is damaged.
        """
        try:
            return list(self._select("output_size IS NULL", {}))
        except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(_unusable(self._path, error)) from error

    def find_request(self, owner: str, request_id: str) -> tuple[JobRecord, str] | None:
        """Return the job that a user's request_id started, and the digest of its stdin."""
        row = self._connection.execute(
            "SELECT * FROM jobs WHERE owner = ? AND request_id = ?", (owner, request_id)
        ).fetchone()
        return None if row is None else (_from_row(row), row["stdin_digest"])

    def _select(self, where: str, values: dict[str, Any]) -> Iterator[JobRecord]:
        query = f"SELECT * FROM jobs WHERE {where}"  # noqa: S608 - callers pass literals
        for row in self._connection.execute(query, values):
            yield _from_row(row)

    def _execute(self, statement: str, values: dict[str, Any]) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise ResourceExhausted(
                    f"cannot write the registry {self._path}: {error}; free some space there"
                ) from error
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise Unavailable(
                    f"cannot write the registry {self._path}: another process has locked it"
                ) from error
            raise


def _unusable(path: Path, error: Exception) -> str:
    return (
        f"cannot use the registry {path}: {error}; move it away to begin with an empty one "
        "(running jobs would be forgotten), or put a backup in its place"
    )


def _fixed(record: JobRecord, stdin_digest: str) -> dict[str, Any]:
    return {
        "id": record.id,
        "owner": record.owner,
        "request_id": record.spec.request_id or None,
        "stdin_digest": stdin_digest,
        "spec": _json(record.spec),
        "created_at": record.created_at,
    }


def _changing(record: JobRecord) -> dict[str, Any]:
    status, process = record.status, record.process
    return {
        "limits": _json(record.limits),
        "warnings": _json(record.warnings),
        "state": status.state.value,
        "exit_code": status.exit_code,
        "signal": status.signal,
        "reason": status.reason.value if status.reason else None,
        "message": status.message,
        "boot_id": process.boot_id if process else None,
        "pid": process.pid if process else None,
        "start_time": process.start_time if process else None,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "output_size": record.output_size,
        "usage": _json(record.usage),
    }


def _from_row(row: sqlite3.Row) -> JobRecord:
    process = None
    if row["pid"] is not None:
        process = Process(boot_id=row["boot_id"], pid=row["pid"], start_time=row["start_time"])
    return JobRecord(
        id=row["id"],
        owner=row["owner"],
        spec=msgspec.json.decode(row["spec"], type=JobSpec),
        created_at=row["created_at"],
        status=JobStatus(
            state=State(row["state"]),
            exit_code=row["exit_code"],
            signal=row["signal"],
            reason=Reason(row["reason"]) if row["reason"] else None,
            message=row["message"],
        ),
        limits=msgspec.json.decode(row["limits"], type=Limits),
        warnings=tuple(msgspec.json.decode(row["warnings"], type=list[str])),
        process=process,
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        output_size=row["output_size"],
        usage=msgspec.json.decode(row["usage"], type=dict[str, int]),
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
