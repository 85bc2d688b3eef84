"""Between a job's record and its row in the registry, in both directions. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobworker.cgroups.limits import Limits
from jobworker.job.record import AcceptedStop, JobRecord, Process
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State

if TYPE_CHECKING:
    import sqlite3

FIXED: Final = (
    "id",
    "owner",
    "request_id",
    "stdin_digest",
    "spec",
    "created_at",
    "name",
    "output_max_bytes",
)
"""The columns that are written once, when the job is accepted."""
CHANGING: Final = (
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
    "stderr_size",
    "usage",
    "stop",
)

INSERT: Final = (
    f"INSERT INTO jobs ({', '.join(FIXED + CHANGING)})"  # noqa: S608 - no input in it
    f" VALUES ({', '.join(f':{column}' for column in FIXED + CHANGING)})"
)
UPDATE: Final = (
    f"UPDATE jobs SET {', '.join(f'{column} = :{column}' for column in CHANGING)}"  # noqa: S608
    " WHERE id = :id"
)

MALFORMED: Final = (msgspec.MsgspecError, ValueError, TypeError)
"""What `record` raises for a row that no jobworker has written."""


def fixed(record: JobRecord, stdin_digest: str) -> dict[str, Any]:
    """Return the values of the FIXED columns."""
    return {
        "id": record.id,
        "owner": record.owner,
        "request_id": record.spec.request_id or None,
        "stdin_digest": stdin_digest,
        "spec": _json(record.spec),
        "created_at": record.created_at,
        "name": record.spec.name,
        "output_max_bytes": record.output_max_bytes,
    }


def changing(record: JobRecord) -> dict[str, Any]:
    """Return the values of the CHANGING columns."""
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
        "stderr_size": record.stderr_size,
        "usage": _json(record.usage),
        "stop": _json(record.stop) if record.stop else None,
    }


def values(record: JobRecord, stdin_digest: str) -> dict[str, Any]:
    """Return the values of all columns, for INSERT."""
    return fixed(record, stdin_digest) | changing(record)


def record(row: sqlite3.Row) -> JobRecord:
    """Return the record in a row. Raises one of MALFORMED."""
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
        output_max_bytes=_later(row, "output_max_bytes"),
        output_size=row["output_size"],
        stderr_size=_later(row, "stderr_size"),
        usage=msgspec.json.decode(row["usage"], type=dict[str, int]),
        stop=_stop(row),
    )


def _stop(row: sqlite3.Row) -> AcceptedStop | None:
    text = _later(row, "stop")
    return None if text is None else msgspec.json.decode(text, type=AcceptedStop)


def _later(row: sqlite3.Row, column: str) -> Any:
    """Return the value of a column, None in a file of the first version.

    Such a file is read before it is brought up to date.
    """
    return row[column] if column in row.keys() else None  # noqa: SIM118 - a Row holds values


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
