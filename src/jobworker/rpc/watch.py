"""How far a client has come in the events of jobs, over as many streams as it takes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker.rpc.resume import GIVE_UP_AFTER, Patience, StreamInterrupted
from jobworker.rpc.v1.jobworker_pb2 import EventType, WatchRequest, WatchResponse

if TYPE_CHECKING:
    from uuid import UUID


class WatchInterrupted(StreamInterrupted):
    """Raised when jobs could not be watched any longer: the server has stayed away.

    Every event up to `resume_token` was delivered, and none twice; watching from there gets the
    rest. It is empty if the watch has not begun.
    """

    def __init__(self, resume_token: str, problem: str) -> None:
        super().__init__(f"the events were cut off: {problem}", problem)
        self.resume_token = resume_token


class WatchProgress(Patience):
    """One client's way through the events."""

    def __init__(
        self,
        resume_token: str = "",
        *,
        job_id: UUID | str = "",
        owner: str = "",
        give_up_after: float = GIVE_UP_AFTER,
    ) -> None:
        super().__init__(give_up_after)
        self._job_id = str(job_id)
        self._owner = owner
        self.resume_token = resume_token
        """Continues after the last message that was accepted."""
        self.finished = False
        """Whether nothing more can come: the one job that was asked for is removed."""

    def request(self, now: float) -> WatchRequest:
        """Return the request for exactly what has not come yet; `now` is monotonic seconds."""
        self.asks(now)
        return WatchRequest(resume_token=self.resume_token, job_id=self._job_id, owner=self._owner)

    def accept(self, message: WatchResponse) -> None:
        """Take a message from the server."""
        self.answered()
        self.gets_ahead()
        self.resume_token = message.resume_token
        self.finished = bool(self._job_id) and message.type == EventType.EVENT_TYPE_REMOVED

    def interrupted(self, problem: str) -> WatchInterrupted:
        """Return what to raise when patience is at its end: it says how to go on."""
        return WatchInterrupted(self.resume_token, problem)
