"""The registry's file: opening it without harming it, bringing it up to date, and its errors."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from jobworker.errors import (
    ConfigError,
    JobWorkerError,
    RegistryDamaged,
    ResourceExhausted,
    Unavailable,
)
from jobworker.job import rows, schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OUT_OF_SPACE: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
)
_PRIMARY: Final = 0xFF
"""The primary result code is in the low byte of an extended one (sqlite.org/rescode.html)."""


def open_file(path: Path, *, patience: float) -> sqlite3.Connection:
    """Open the registry's file, or create it (0600), and bring it to this program's version.

    A file that is refused is left as it is. Raises ConfigError, saying what to do.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise ConfigError(f"cannot open the registry {path}: {error}") from error
    connection = None
    try:
        connection = connect(path, patience=patience)
        _prepare(connection, path)
    except sqlite3.Error as error:
        _close(connection)
        raise ConfigError(unusable(path, error)) from error
    except BaseException:
        _close(connection)
        raise
    return connection


def connect(path: Path, *, patience: float, read_only: bool = False) -> sqlite3.Connection:
    """Connect to an existing file, without looking at it. Raises sqlite3.Error."""
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=patience,
    )
    connection.row_factory = sqlite3.Row
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # Looked at before anything is changed, the journal mode included.
    version = _check(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if version < schema.VERSION:
        with transaction(connection):
            for statement in schema.migration(version):
                connection.execute(statement)


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema's version, 0 of an empty file; raise ConfigError for a foreign one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    ours = {0: not tables, 1: "jobs" in tables}.get(version, application == schema.APPLICATION_ID)
    if not ours or application not in (0, schema.APPLICATION_ID):
        raise ConfigError(unusable(path, "it is a database of another program"))
    if version > schema.VERSION:
        raise ConfigError(
            f"cannot use the registry {path}: it has schema version {version}, this jobworker "
            f"knows {schema.VERSION}; run the version that wrote it, or a newer one"
        )
    return int(version)


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
    code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
    if code in _OUT_OF_SPACE:
        return ResourceExhausted(f"{problem}; free some space there")
    match code & _PRIMARY:
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
    return (
        f"cannot use the registry {path}: {problem}; move it away to begin with an empty one "
        "(running jobs would be forgotten), or put a backup in its place"
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
