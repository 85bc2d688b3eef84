"""Registries to look into: records with little to say, and a file as version 1 wrote it."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from jobworker.job.record import JobRecord
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State

if TYPE_CHECKING:
    from pathlib import Path

VERSION_1 = """
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
"""What the first release wrote; it does not follow the program's own text."""

_OLD_ROW = (
    "INSERT INTO jobs VALUES (:id, 'user_alpha', :request_id, 'd', :spec, '{}', '[]', :state,"
    " :exit_code, NULL, :reason, '', NULL, NULL, NULL, :created_at, NULL, NULL, :output_size, '{}')"
)


def job_record(number: int, state: State = State.EXITED, **fields: object) -> JobRecord:
    """Return the record of a job that was accepted `number` seconds after the epoch.

    `name`, `labels` and `args` are those of its specification.
    """
    of_spec = {key: fields.pop(key) for key in ("name", "labels", "args") if key in fields}
    finished = state not in (State.PENDING, State.RUNNING)
    record = JobRecord(
        id=str(uuid.UUID(int=number)),
        owner="user_alpha",
        spec=JobSpec(command="true", **of_spec),
        created_at=float(number),
        status=JobStatus(
            state, exit_code=0 if finished else None, reason=Reason.EXITED if finished else None
        ),
        ended_at=float(number) if finished else None,
        output_size=0 if finished else None,
    )
    return replace(record, **fields)


def write_version_1(path: Path, *, spec: str = "") -> list[str]:
    """Write a registry as version 1 did, with a finished and a running job; return their ids."""
    ids = [str(uuid.UUID(int=number)) for number in (1, 2)]
    spec = (
        spec or '{"command": "sh", "args": ["-c"], "name": "old", "labels": {"k": "v", "a": "b"}}'
    )
    common = {"spec": spec, "exit_code": None, "reason": None, "output_size": None}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN; {VERSION_1} PRAGMA user_version = 1; COMMIT;")
        finished = {"state": "exited", "exit_code": 3, "reason": "exited", "output_size": 7}
        connection.execute(
            _OLD_ROW, {**common, **finished, "id": ids[0], "request_id": "r", "created_at": 1.5}
        )
        connection.execute(
            _OLD_ROW,
            {**common, "id": ids[1], "request_id": None, "state": "running", "created_at": 2.5},
        )
    return ids
