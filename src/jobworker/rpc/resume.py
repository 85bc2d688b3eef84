"""Whether a lost stream is taken up again, and how far a client has come in a job's output. Pure.

Both clients drive the same object: they open a stream with `request()`, pass every message through
`accept()`, and when a stream ends early ask `lost()` how long to wait before the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from jobworker.errors import Unavailable
from jobworker.rpc.frames import OutputMessage
from jobworker.rpc.v1.jobworker_pb2 import OutputEnd, OutputRequest, OutputStream, Status

if TYPE_CHECKING:
    from uuid import UUID

GIVE_UP_AFTER: Final = 60.0
"""Seconds without any progress after which a lost stream is given up."""

NOTICE_AFTER: Final = 1.0
"""Seconds without the server after which whoever waits for the output should be told."""

FINISHED: Final = (Status.STATUS_STOPPED, Status.STATUS_EXITED, Status.STATUS_LOST)
"""The statuses of a job that has ended."""

_UNFINISHED: Final = (Status.STATUS_PENDING, Status.STATUS_RUNNING)

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
_REASON_AFTER: Final = "Failed to connect to remote host: "


class StreamInterrupted(Unavailable):
    """Raised when a stream could not be followed to its end: the server has stayed away."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text)
        self.problem = problem


class OutputInterrupted(StreamInterrupted):
    """Raised when a job's output could not be read to its end.

    Every byte before `offset` was delivered, and none twice; asking again from there gets the rest.
    """

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(f"the output was cut off at byte {offset}: {problem}", problem)
        self.offset = offset


class Patience:
    """Decides after each lost stream whether, and when, the next one is opened in its place.

    `reached` tells that the server has answered before, another call say.
    """

    def __init__(self, give_up_after: float = GIVE_UP_AFTER, *, reached: bool = False) -> None:
        self._give_up_after = give_up_after
        self._reached = reached
        self._asked_at = 0.0
        self._attempts = 0
        self._lost_at: float | None = None
        self._noticed = False

    def asks(self, now: float) -> None:
        """Note that a stream is asked for; `now` is monotonic seconds, as everywhere here."""
        self._asked_at = now

    def answered(self) -> None:
        """Note that the server has sent something, be it nothing new."""
        self._reached = True

    def gets_ahead(self) -> None:
        """Note progress: from now on the next loss is the first."""
        self._attempts = 0
        self._lost_at = None
        self._noticed = False

    def lost(self, now: float, error: grpc.RpcError | None = None) -> float:
        """Return how many seconds to wait before the next stream, after one ended without an end.

        `error` is what the stream raised; None means that it just ended. `now` is monotonic time in
        seconds. Raises `error` itself if asking again is of no use: the server refused, or it was
        never reached. Raises StreamInterrupted when the server has not answered for too long.
        """
        unreached = error is not None and never_connected(error)
        if error is not None and (
            error.code() not in _TRANSIENT or (unreached and not self._reached)
        ):
            raise error
        if not unreached and now - self._asked_at >= LONG_STREAM:
            self.gets_ahead()
        self._reached = True
        if self._lost_at is None:
            self._lost_at = now
        if now - self._lost_at >= self._give_up_after:
            raise self.interrupted(problem_of(error)) from error
        delay: float = min(FIRST_DELAY * 2**self._attempts, LAST_DELAY)
        self._attempts += 1
        return delay

    def interrupted(self, problem: str) -> StreamInterrupted:
        """Return what to raise when patience is at its end."""
        return StreamInterrupted(f"the stream was cut off: {problem}", problem)

    def must_notify(self, now: float) -> bool:
        """Tell, after `lost`, whether to say so now: once for each interruption that takes long."""
        if self._noticed or self._lost_at is None or now - self._lost_at < NOTICE_AFTER:
            return False
        self._noticed = True
        return True


class OutputProgress(Patience):
    """One client's way through one job's output, over as many streams as it takes.

    It begins at byte `offset`, or `last_bytes` or `last_lines` before the end; where that is, the
    server says, and what is asked for after that is asked for by its offset.
    """

    def __init__(
        self,
        job_id: UUID | str,
        *,
        tail: bool = False,
        offset: int = 0,
        last_bytes: int | None = None,
        last_lines: int | None = None,
        stream: OutputStream.ValueType = OutputStream.OUTPUT_STREAM_UNSPECIFIED,
        give_up_after: float = GIVE_UP_AFTER,
        reached: bool = False,
    ) -> None:
        super().__init__(give_up_after, reached=reached)
        self._job_id = str(job_id)
        self._tail = tail
        self._last_bytes = last_bytes
        self._last_lines = last_lines
        self._stream = stream
        self.offset = offset
        """The offset of the next byte to deliver."""
        self.finished = False
        """Whether the end was seen, and with it every byte before it."""

    def request(self, now: float) -> OutputRequest:
        """Return the request for exactly what is still missing; `now` is monotonic seconds."""
        self.asks(now)
        return OutputRequest(
            job_id=self._job_id,
            tail=self._tail,
            offset=self.offset,
            last_bytes=self._last_bytes,
            last_lines=self._last_lines,
            stream=self._stream,
        )

    def accept(self, message: OutputMessage) -> OutputMessage | None:
        """Take a message from the server and return what of it is new, or None.

        What was delivered before is not delivered again. A jump forwards is passed on, with how
        many bytes were dropped in `message.gap`.
        """
        self.answered()
        if self._last_bytes is not None or self._last_lines is not None:
            # The first message says where the stream begins; one without output says nothing else.
            self.offset = message.offset
            self._last_bytes = self._last_lines = None
        view = message.view
        gap = message.offset - self.offset
        if gap < 0:
            view = view[-gap:]
            gap = 0
        if gap and (view or message.end.status.status in _UNFINISHED):
            self.offset = message.offset
        if view:
            self.offset += len(view)
            self.gets_ahead()
        self.finished = message.has_end and self._is_true(message.end)
        if not view and not self.finished:
            return None
        if message.has_end == self.finished and len(view) == len(message.view):
            message.gap = gap
            return message
        end = message.end if self.finished else None
        return OutputMessage(self.offset - len(view), view, end, gap=gap)

    def _is_true(self, end: OutputEnd) -> bool:
        # An end before the last byte of a finished job is none: the rest is asked for again.
        return end.status.status not in FINISHED or end.size <= self.offset

    def interrupted(self, problem: str) -> OutputInterrupted:
        """Return what to raise when patience is at its end: it says how far the output came."""
        return OutputInterrupted(self.offset, problem)


def problem_of(error: grpc.RpcError | None) -> str:
    """Return what ended a stream, in words; None means that it just ended."""
    if error is None:
        return "the stream ended early"
    details = error.details() or "the connection was lost"
    # What gRPC's core says before it (every address it tried) helps nobody to decide to wait on.
    return details.rpartition(_REASON_AFTER)[2] if never_connected(error) else details


def never_connected(error: grpc.RpcError) -> bool:
    """Tell whether a call failed because no connection could be made, so that nothing was sent.

    The words are those of gRPC's core (its policy pick_first and its resolvers, grpcio 1.85 and
    before), which has no code for it.
    """
    return (error.details() or "").startswith(_NEVER_CONNECTED)
