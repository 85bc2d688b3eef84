"""The registry's tables, as versions and the statements that lead from each to the next. Pure.

A version that was released is never changed: a file that some server wrote with it is brought up to
date by the statements of the versions after it, all of them in one transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 2
"""The version that this program reads and writes (`PRAGMA user_version`)."""
APPLICATION_ID: Final = 0x6A6F6277
"""Whose file it is: "jobw" (`PRAGMA application_id`, in the file's header since version 2)."""

_JOBS: Final = """
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
) STRICT, WITHOUT ROWID
"""

# Jobs in the order in which they were accepted, with ids and indexes beside them: the pages of a
# listing are neighbours in the file, and adding a job appends.
_JOBS_IN_ORDER: Final = """
CREATE TABLE jobs_in_order (
    number      INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    owner       TEXT NOT NULL,
    request_id  TEXT,
    stdin_digest TEXT NOT NULL,
    name        TEXT NOT NULL,
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
    output_max_bytes INTEGER,
    output_size INTEGER,
    stderr_size INTEGER,
    usage       TEXT NOT NULL
) STRICT
"""
_KEPT: Final = (
    "id, owner, request_id, stdin_digest, spec, limits, warnings, state, exit_code, signal, reason,"
    " message, boot_id, pid, start_time, created_at, started_at, ended_at, output_size, usage"
)
_REQUESTS: Final = """
CREATE UNIQUE INDEX jobs_by_request ON jobs (owner, request_id) WHERE request_id IS NOT NULL
"""
_UNFINISHED: Final = "CREATE INDEX jobs_unfinished ON jobs (state) WHERE output_size IS NULL"

# An index for each filter of a listing, in the listing's order: a page is a range of one of them.
_LISTING: Final = (
    "CREATE INDEX jobs_by_time ON jobs (created_at DESC, id)",
    "CREATE INDEX jobs_by_owner ON jobs (owner, created_at DESC, id)",
    "CREATE INDEX jobs_by_state ON jobs (state, created_at DESC, id)",
    "CREATE INDEX jobs_by_name ON jobs (name, created_at DESC, id) WHERE name <> ''",
    """
    CREATE TABLE labels (
        key         TEXT NOT NULL,
        value       TEXT NOT NULL,
        created_at  REAL NOT NULL,
        id          TEXT NOT NULL,
        number      INTEGER NOT NULL,
        PRIMARY KEY (key, value, created_at DESC, id)
    ) STRICT, WITHOUT ROWID
    """,
)
_ADD_LABELS: Final = """
INSERT INTO labels (key, value, created_at, id, number)
SELECT label.key, label.value, {job}.created_at, {job}.id, {job}.number
FROM {source}json_each({job}.spec, '$.labels') AS label
"""
# Whoever adds or deletes a job cannot forget its labels.
_LABELS: Final = (
    _ADD_LABELS.format(job="jobs", source="jobs, "),
    f"""
    CREATE TRIGGER jobs_add_labels AFTER INSERT ON jobs BEGIN
        {_ADD_LABELS.format(job="NEW", source="")};
    END
    """,
    """
    CREATE TRIGGER jobs_delete_labels AFTER DELETE ON jobs BEGIN
        DELETE FROM labels WHERE (key, value, created_at, id) IN (
            SELECT label.key, label.value, OLD.created_at, OLD.id
            FROM json_each(OLD.spec, '$.labels') AS label
        );
    END
    """,
)

# With AUTOINCREMENT no event's number is given out twice, also when all are gone
# (sqlite.org/autoinc.html). One that was rolled back is: nobody has seen it.
_EVENTS: Final = (
    """
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        type     TEXT NOT NULL,
        time     REAL NOT NULL,
        job_id   TEXT NOT NULL,
        owner    TEXT NOT NULL,
        name     TEXT NOT NULL,
        status   TEXT NOT NULL,
        user     TEXT NOT NULL,
        signal   INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE TABLE event_registry (id TEXT NOT NULL) STRICT",
    "INSERT INTO event_registry VALUES (lower(hex(randomblob(8))))",
)

# Retention asks for the jobs that ended first, a few at a time, and never counts: the sums over all
# finished jobs are kept by triggers, so they are right after every commit, whatever made it.
_RETENTION: Final = (
    "ALTER TABLE jobs ADD COLUMN disk_bytes INTEGER",  # NULL until it has been measured
    "CREATE INDEX jobs_by_end ON jobs (ended_at, id) WHERE output_size IS NOT NULL",
    """
    CREATE INDEX jobs_unmeasured ON jobs (id)
    WHERE output_size IS NOT NULL AND disk_bytes IS NULL
    """,
    "CREATE TABLE totals (jobs INTEGER NOT NULL, disk_bytes INTEGER NOT NULL) STRICT",
    "INSERT INTO totals SELECT count(*), 0 FROM jobs WHERE output_size IS NOT NULL",
    """
    CREATE TRIGGER jobs_add_to_totals AFTER INSERT ON jobs WHEN NEW.output_size IS NOT NULL BEGIN
        UPDATE totals SET jobs = jobs + 1, disk_bytes = disk_bytes + coalesce(NEW.disk_bytes, 0);
    END
    """,
    """
    CREATE TRIGGER jobs_end_in_totals AFTER UPDATE OF output_size ON jobs
    WHEN (OLD.output_size IS NULL) <> (NEW.output_size IS NULL) BEGIN
        UPDATE totals SET jobs = jobs + (OLD.output_size IS NULL) - (NEW.output_size IS NULL);
    END
    """,
    """
    CREATE TRIGGER jobs_measure_in_totals AFTER UPDATE OF disk_bytes ON jobs BEGIN
        UPDATE totals
        SET disk_bytes = disk_bytes - coalesce(OLD.disk_bytes, 0) + coalesce(NEW.disk_bytes, 0);
    END
    """,
    """
    CREATE TRIGGER jobs_delete_from_totals AFTER DELETE ON jobs BEGIN
        UPDATE totals SET jobs = jobs - (OLD.output_size IS NOT NULL),
            disk_bytes = disk_bytes - coalesce(OLD.disk_bytes, 0);
    END
    """,
    # Jobs that are forgotten and whose files may still be there.
    "CREATE TABLE removing (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
)

MIGRATIONS: Final[Mapping[int, tuple[str, ...]]] = {
    1: (_JOBS, _REQUESTS, _UNFINISHED),
    2: (
        _JOBS_IN_ORDER,
        f"""
        INSERT INTO jobs_in_order (name, {_KEPT})
        SELECT coalesce(json_extract(spec, '$.name'), ''), {_KEPT}
        FROM jobs ORDER BY created_at, id
        """,  # noqa: S608 - no input in it
        "DROP TABLE jobs",
        "ALTER TABLE jobs_in_order RENAME TO jobs",
        _REQUESTS,
        _UNFINISHED,
        *_LISTING,
        *_LABELS,
        *_EVENTS,
        "ALTER TABLE jobs ADD COLUMN stop TEXT",
        *_RETENTION,
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
}
"""Version → the statements that lead to it from the version before."""


def migration(version: int) -> list[str]:
    """Return the statements that lead from `version` (0: an empty file) to VERSION."""
    steps = [statement for step in range(version, VERSION) for statement in MIGRATIONS[step + 1]]
    return [*steps, f"PRAGMA user_version = {VERSION}"] if steps else []
