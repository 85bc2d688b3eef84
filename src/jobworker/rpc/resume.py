"""How far a client has come in a job's output, and whether a lost stream is taken up again. Pure.

Both clients drive the same object: they open a stream with `request()`, pass every message through
`accept()`, and when a stream ends early ask `lost()` how long to wait before the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from jobworker.errors import Unavailable
from jobworker.rpc.v1.jobworker_pb2 import OutputEnd, OutputRequest, OutputResponse, Status

if TYPE_CHECKING:
    from uuid import UUID

GIVE_UP_AFTER: Final = 60.0
"""Seconds without any progress after which a lost stream is given up."""

NOTICE_AFTER: Final = 1.0
"""Seconds without the server after which whoever waits for the output should be told."""

FINISHED: Final = (Status.STATUS_STOPPED, Status.STATUS_EXITED, Status.STATUS_LOST)
"""The statuses of a job that has ended."""

LONG_STREAM: Final = 10.0
"""Seconds after which a stream that brought nothing counts as progress: the job was quiet."""

FIRST_DELAY: Final = 0.05
LAST_DELAY: Final = 2.0

_TRANSIENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_NEVER_CONNECTED: Final = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
)


class OutputInterrupted(Unavailable):
    """Raised when a job's output could not be read to its end.

    Every byte before `offset` was delivered, and none twice; asking again from there gets the rest.
    """

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(f"the output was cut off at byte {offset}: {problem}")
        self.offset = offset
        self.problem = problem


class OutputProgress:
    """One client's way through one job's output, over as many streams as it takes."""

    def __init__(
        self,
        job_id: UUID | str,
        *,
        tail: bool = False,
        offset: int = 0,
        give_up_after: float = GIVE_UP_AFTER,
    ) -> None:
        self._job_id = str(job_id)
        self._tail = tail
        self._give_up_after = give_up_after
        self._reached = False
        self._asked_at = 0.0
        self._attempts = 0
        self._lost_at: float | None = None
        self._noticed = False
        self.offset = offset
        """The offset of the next byte to deliver."""
        self.finished = False
        """Whether the end was seen, and with it every byte before it."""

    def request(self, now: float) -> OutputRequest:
        """Return the request for exactly what is still missing; `now` is monotonic seconds."""
        self._asked_at = now
        return OutputRequest(job_id=self._job_id, tail=self._tail, offset=self.offset)

    def accept(self, message: OutputResponse) -> OutputResponse | None:
        """Take a message from the server and return what of it is new, or None.

        Raises OutputInterrupted if the message leaves a gap: bytes are never skipped silently.
        """
        self._reached = True
        known = self.offset - message.offset
        output = message.output
        if output:
            if known < 0:
                raise OutputInterrupted(self.offset, f"the server went on at byte {message.offset}")
            output = output[known:]
        if output:
            self.offset += len(output)
            self._gets_ahead()
        self.finished = message.HasField("end") and self._is_true(message.end)
        if message.HasField("end") != self.finished or (known and message.output):
            message = OutputResponse(
                output=output,
                offset=self.offset - len(output),
                end=message.end if self.finished else None,
            )
        return message if output or self.finished else None

    def _is_true(self, end: OutputEnd) -> bool:
        # An end before the last byte of a finished job is none: the rest is asked for again.
        return end.status.status not in FINISHED or end.size <= self.offset

    def _gets_ahead(self) -> None:
        self._attempts = 0
        self._lost_at = None
        self._noticed = False

    def lost(self, now: float, error: grpc.RpcError | None = None) -> float:
        """Return how many seconds to wait before the next stream, after one ended without an end.

        `error` is what the stream raised; None means that it just ended. `now` is monotonic time in
        seconds. Raises `error` itself if asking again is of no use: the server refused, or it was
        never reached. Raises OutputInterrupted when the server has not answered for too long.
        """
        unreached = error is not None and never_connected(error)
        if error is not None and (
            error.code() not in _TRANSIENT or (unreached and not self._reached)
        ):
            raise error
        if not unreached and now - self._asked_at >= LONG_STREAM:
            self._gets_ahead()
        self._reached = True
        if self._lost_at is None:
            self._lost_at = now
        if now - self._lost_at >= self._give_up_after:
            raise OutputInterrupted(self.offset, problem_of(error)) from error
        delay: float = min(FIRST_DELAY * 2**self._attempts, LAST_DELAY)
        self._attempts += 1
        return delay

    def must_notify(self, now: float) -> bool:
        """Tell, after `lost`, whether to say so now: once for each interruption that takes long."""
        if self._noticed or self._lost_at is None or now - self._lost_at < NOTICE_AFTER:
            return False
        self._noticed = True
        return True


def problem_of(error: grpc.RpcError | None) -> str:
    """Return what ended a stream, in words; None means that it just ended."""
    if error is None:
        return "the stream ended early"
    return error.details() or "the connection was lost"


def never_connected(error: grpc.RpcError) -> bool:
    """Tell whether a call failed because no connection could be made, so that nothing was sent.

    The words are those of gRPC's core (its policy pick_first and its resolvers, grpcio 1.85 and
    before), which has no code for it.
    """
    return (error.details() or "").startswith(_NEVER_CONNECTED)
