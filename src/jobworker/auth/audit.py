"""The audit log: one line of JSON for every decision to allow or deny and every change to a job."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any, Self

from jobworker.errors import ConfigError, Unavailable
from jobworker.exhaustion import exhausted

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class Audit:
    """An append-only file of JSON lines; rotating it by renaming is noticed."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._log = logging.Logger("jobworker.audit")  # noqa: LOG001 - this audit's own
        self._log.addHandler(handler)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, or create it (0600) and its directory. Raises ConfigError."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            return cls(_Handler(path))
        except OSError as error:
            raise ConfigError(f"cannot open the audit log {path}: {error.strerror}") from error

    def decision(self, *, allowed: bool, method: str, user: str, peer: str, why: str = "") -> None:
        """Record that a call was let in or refused.

        Raises ResourceExhausted (the disk is full) or Unavailable if that cannot be written: what
        leaves no trace is not done.
        """
        event = "allowed" if allowed else "denied"
        try:
            self._write(event, method=method, user=user, peer=peer, why=why)
        except OSError as error:
            what = "write the audit log, so every call is refused"
            raise exhausted(what, error.errno) or Unavailable(
                f"cannot {what}: {error.strerror}"
            ) from error

    def change(self, event: str, *, job_id: str, **fields: Any) -> None:
        """Record what has happened to a job. If that cannot be written, the log says so."""
        try:
            self._write(event, job_id=job_id, **fields)
        except OSError:
            log.exception("cannot write to the audit log: job %s: %s", job_id, event)

    def _write(self, event: str, **fields: Any) -> None:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        said = {key: value for key, value in fields.items() if value != ""}
        self._log.info("%s", json.dumps({"time": now, "event": event, **said}, default=repr))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Handler(WatchedFileHandler):
    """Passes errors on, which logging prints and forgets."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        del record
        raise  # noqa: PLE0704 - logging calls this where it has caught the error
