"""When a job has to be stopped and when killed. Pure: the caller brings the time.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations


class Schedule:
    """What is known and what is due of one job's stopping.

    `stopped` and `timed_out` say whether somebody asked for it and whether the job's time was up.
    Whoever asks again may bring the kill nearer, never put it off.
    """

    __slots__ = ("kill_at", "stopped", "timed_out", "timeout_at")

    def __init__(self) -> None:
        self.stopped = False
        self.timed_out = False
        self.timeout_at: float | None = None
        self.kill_at: float | None = None

    def start(self, now: float, timeout: float | None) -> None:
        """The command has been executed: its time begins."""
        if timeout is not None:
            self.timeout_at = now + timeout

    def stop(self, now: float, grace: float) -> None:
        """Somebody asks for the job to be stopped."""
        self.stopped = True
        self._kill_by(now + grace)

    def expire(self, now: float, grace: float) -> None:
        """The job's time is up."""
        self.timed_out = True
        self.timeout_at = None
        self._kill_by(now + grace)

    def next(self) -> float | None:
        """When something is due, or None if nothing is."""
        times = [each for each in (self.timeout_at, self.kill_at) if each is not None]
        return min(times, default=None)

    def _kill_by(self, when: float) -> None:
        self.kill_at = when if self.kill_at is None else min(self.kill_at, when)
