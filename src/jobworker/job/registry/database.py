"""The registry's file: opening it without harming it, bringing it up to date, and its errors."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from jobworker.errors import (
    ConfigError,
    JobWorkerError,
    RegistryDamaged,
    ResourceExhausted,
    Unavailable,
)
from jobworker.job.registry import rows, schema, wal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

UNFINISHED: Final = "SELECT * FROM jobs WHERE output_size IS NULL"

_SETTINGS: Final = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL")

_OUT_OF_SPACE: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
)
_CACHE_KIB: Final = 256
"""How much of the file each connection keeps in memory; the kernel keeps it too.

SQLite's default, 2000 KiB for each of two connections, was a quarter of what server and shim grow
by with a thousand running jobs. Lists and inserts of a registry of 100,000 take as long with this.
"""
_PRIMARY: Final = 0xFF
"""The primary result code is in the low byte of an extended one (sqlite.org/rescode.html)."""


def open_file(path: Path, *, patience: float) -> sqlite3.Connection:
    """Open the registry's file, or create it (0600), and bring it to this program's version.

    Before anything is written, its log, its header, its schema and the rows of unfinished jobs are
    looked at. The other rows may be a million: damage there is found by the call that meets it. A
    registry that is refused is left as it is, its log included. Raises ConfigError, saying what to
    do.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise ConfigError(_unreachable(path, error)) from error
    try:
        _check_log(path.with_name(f"{path.name}-wal"), path)
        with closing(connect(path, patience=patience, read_only=True)) as guard:
            # While a connection that cannot write is open, the end of another writes nothing.
            version = _check(guard, path)
            connection = connect(path, patience=patience)
            try:
                _prepare(connection, version)
            except BaseException:
                connection.close()
                raise
    except (sqlite3.Error, *rows.MALFORMED) as error:
        raise ConfigError(unusable(path, error)) from error
    # Nothing of an earlier server stays in the log; the next one can tell damage from old frames.
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return connection


def _check_log(log: Path, path: Path) -> None:
    """Refuse a damaged log; where the host was restarted, some of it may never have arrived."""
    try:
        data = log.read_bytes()
        written = log.stat().st_mtime
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(_unreachable(log, error)) from error
    place = wal.damage(data)
    if place is None:
        return
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    if written < booted:
        logger.warning("the log %s ends at byte %d: the host was restarted meanwhile", log, place)
        return
    raise ConfigError(
        f"cannot use the registry {path}: its log {log} is damaged at byte {place}; put a backup "
        f"of both in their place, or go on without what came after it: truncate -s {place} {log}"
    )


def connect(path: Path, *, patience: float, read_only: bool = False) -> sqlite3.Connection:
    """Connect to an existing file. Raises sqlite3.Error, also if it is no database."""
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=patience,
        check_same_thread=not read_only,  # The reader's thread is gone when it is closed.
    )
    connection.row_factory = sqlite3.Row
    try:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")  # which looks at the schema
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema's version, 0 of an empty file; raise ConfigError for a foreign one."""
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema").fetchall()}
    ours = {0: not tables, 1: "jobs" in tables}.get(version, application == schema.APPLICATION_ID)
    if not ours or application not in (0, schema.APPLICATION_ID):
        raise ConfigError(unusable(path, "it is a database of another program"))
    if version > schema.VERSION:
        raise ConfigError(
            f"cannot use the registry {path}: it has schema version {version}, this jobworker "
            f"knows {schema.VERSION}; run the version that wrote it, or a newer one"
        )
    if version:
        for row in connection.execute(UNFINISHED).fetchall():
            rows.record(row)
    return int(version)


def _prepare(connection: sqlite3.Connection, version: int) -> None:
    for setting in _SETTINGS:
        connection.execute(setting).fetchall()
    if version < schema.VERSION:
        with transaction(connection):
            for statement in schema.migration(version):
                connection.execute(statement)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block writes, as a whole, or nothing of it if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled some back by itself, for example when the disk was full.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def translated(doing: str, path: Path) -> Iterator[None]:
    """Raise what goes wrong with the registry's file as an error of ours.

    That is ResourceExhausted, Unavailable or RegistryDamaged; IntegrityError is the caller's.
    """
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise _translate(f"cannot {doing} the registry {path}: {error}", error) from error
    except rows.MALFORMED as error:
        raise RegistryDamaged(_damaged(f"cannot {doing} the registry {path}: {error}")) from error


def _translate(problem: str, error: sqlite3.Error) -> JobWorkerError:
    if _code(error) in _OUT_OF_SPACE:
        return ResourceExhausted(f"{problem}; free some space there")
    match _primary(error):
        case sqlite3.SQLITE_NOMEM:
            return ResourceExhausted(f"{problem}; the server has no memory left")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"{problem}; another process has locked it")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return Unavailable(f"{problem}; see that its directory is there and can be written")
        case _:
            return RegistryDamaged(_damaged(problem))


def _damaged(problem: str) -> str:
    return f"{problem}; jobs go on, but stop the server and put a backup in its place"


def unusable(path: Path, problem: object) -> str:
    """Say why the registry cannot be used, and what to do."""
    if _primary(problem) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"cannot use the registry {path}: {problem}; end the process that has locked it"
    if _primary(problem) == sqlite3.SQLITE_FULL or _code(problem) in _OUT_OF_SPACE:
        return f"cannot use the registry {path}: {problem}; free some space there"
    return (
        f"cannot use the registry {path}: {problem}; move it away to begin with an empty one "
        "(running jobs would be forgotten), or put a backup in its place"
    )


def _unreachable(path: Path, error: OSError) -> str:
    remedy = {
        errno.EISDIR: "move the directory away",
        errno.ELOOP: "it is a symbolic link: put the file itself there",
        errno.EROFS: "mount the file system so that it can be written",
        errno.ENOSPC: "free some space there",
    }.get(error.errno or 0, "see who may read and write it")
    return f"cannot open the registry {path}: {error.strerror}; {remedy}"


def _code(error: object) -> int:
    return getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR


def _primary(error: object) -> int:
    return _code(error) & _PRIMARY
