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

# An index for each filter of a listing, in the listing's order: a page is a range of one of them.
_LISTING: Final = (
    "ALTER TABLE jobs ADD COLUMN name TEXT NOT NULL DEFAULT ''",
    "UPDATE jobs SET name = coalesce(json_extract(spec, '$.name'), '')",
    "CREATE INDEX jobs_by_time ON jobs (created_at DESC, id)",
    "CREATE INDEX jobs_by_owner ON jobs (owner, created_at DESC, id)",
    "CREATE INDEX jobs_by_state ON jobs (state, created_at DESC, id)",
    "CREATE INDEX jobs_by_name ON jobs (name, created_at DESC, id) WHERE name <> ''",
    """
    CREATE TABLE labels (
        key         TEXT NOT NULL,
        value       TEXT NOT NULL,
        created_at  REAL NOT NULL,
        job_id      TEXT NOT NULL,
        PRIMARY KEY (key, value, created_at DESC, job_id)
    ) STRICT, WITHOUT ROWID
    """,
    """
    INSERT INTO labels (key, value, created_at, job_id)
    SELECT label.key, label.value, jobs.created_at, jobs.id
    FROM jobs, json_each(jobs.spec, '$.labels') AS label
    """,
)
# Whoever adds or deletes a job cannot forget its labels.
_LABELS: Final = (
    """
    CREATE TRIGGER jobs_add_labels AFTER INSERT ON jobs BEGIN
        INSERT INTO labels (key, value, created_at, job_id)
        SELECT label.key, label.value, NEW.created_at, NEW.id
        FROM json_each(NEW.spec, '$.labels') AS label;
    END
    """,
    """
    CREATE TRIGGER jobs_delete_labels AFTER DELETE ON jobs BEGIN
        DELETE FROM labels WHERE (key, value, created_at, job_id) IN (
            SELECT label.key, label.value, OLD.created_at, OLD.id
            FROM json_each(OLD.spec, '$.labels') AS label
        );
    END
    """,
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
    1: (
        _JOBS,
        """
        CREATE UNIQUE INDEX jobs_by_request ON jobs (owner, request_id)
        WHERE request_id IS NOT NULL
        """,
        "CREATE INDEX jobs_unfinished ON jobs (state) WHERE output_size IS NULL",
    ),
    2: (
        "ALTER TABLE jobs ADD COLUMN output_max_bytes INTEGER",
        "ALTER TABLE jobs ADD COLUMN stderr_size INTEGER",
        *_LISTING,
        *_LABELS,
        *_RETENTION,
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
}
"""Version → the statements that lead to it from the version before."""


def migration(version: int) -> list[str]:
    """Return the statements that lead from `version` (0: an empty file) to VERSION."""
    steps = [statement for step in range(version, VERSION) for statement in MIGRATIONS[step + 1]]
    return [*steps, f"PRAGMA user_version = {VERSION}"] if steps else []
