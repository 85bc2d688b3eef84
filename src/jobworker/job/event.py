"""What has happened to a job, as a value, and the token that says how far one has read. Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from jobworker.errors import InvalidArgument

if TYPE_CHECKING:
    from jobworker.job.record import JobRecord
    from jobworker.job.state import JobStatus

_VERSION: Final = "01"
_TOKEN: Final = re.compile(
    f"{_VERSION}(?P<registry>[0-9a-f]{{16}})(?P<sequence>[0-9a-f]{{16}})(?P<check>[0-9a-f]{{16}})",
    re.ASCII,
)
LARGEST: Final = 2**63 - 1
"""SQLite's integers are signed and have 64 bits."""


class EventType(enum.StrEnum):
    """What can happen to a job; the names are those of the wire contract, in words."""

    STARTED = "started"
    STOPPING = "stopping"
    LIMITS_UPDATED = "limits updated"
    PAUSED = "paused"
    RESUMED = "resumed"
    SIGNALED = "signaled"
    ENDED = "ended"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something that has happened to a job at `time` (seconds since the epoch).

    `status` is the job's as it was then; `user` is who asked for it, empty if nobody did; `signal`
    is what it was sent, 0 if nothing was.
    """

    type: EventType
    time: float
    job_id: str
    owner: str
    name: str
    status: JobStatus
    user: str = ""
    signal: int = 0

    @classmethod
    def of(cls, type: EventType, record: JobRecord, *, now: float, user: str = "") -> Self:  # noqa: A002 - the field's name
        """Tell of a job as `record` has it. Its beginning and its end were when it says."""
        known = {EventType.STARTED: record.started_at, EventType.ENDED: record.ended_at}
        time = known.get(type)
        return cls(
            type=type,
            time=now if time is None else time,
            job_id=record.id,
            owner=record.owner,
            name=record.spec.name,
            status=record.status,
            user=user,
        )


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two events: after the one that has the number `sequence`.

    `registry` is the random identity of the registry that counts, 16 hexadecimal digits. `check`
    is taken from that event: numbers are given out again when a registry is put back from a backup,
    or has lost its last writes with the power.
    """

    registry: str
    sequence: int
    check: int

    def token(self) -> str:
        """Return the resume token, in which clients keep a position."""
        return f"{_VERSION}{self.registry}{self.sequence:016x}{self.check:016x}"

    @classmethod
    def parse(cls, token: str) -> Self:
        """Read a resume token. Raises InvalidArgument if it is none."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise InvalidArgument("resume_token", "this is not a token that a watch has given")
        position = cls(match["registry"], int(match["sequence"], 16), int(match["check"], 16))
        if max(position.sequence, position.check) > LARGEST:
            raise InvalidArgument("resume_token", "this is not a token that a watch has given")
        return position


@dataclass(frozen=True, slots=True)
class Told:
    """What a watcher gets: an event, or none if only the position is news; then it is the token's.

    `token` continues after it.
    """

    token: str
    event: JobEvent | None = None
