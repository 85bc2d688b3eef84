"""What is said of bytes that a cap on the output has dropped before they could be read. Pure."""

from __future__ import annotations

from typing import Final

EVERY: Final = 1.0
"""Seconds between two notices: a job that writes faster than it is read has gaps all the time."""


class Gaps:
    """Counts what is missing of one stream, and decides when to say so."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said_at: float | None = None
        self._missing = 0
        self._first = 0
        self._end = 0

    def note(self, begin: int, end: int, now: float) -> str:
        """Note that the bytes from `begin` to `end` are missing; return what to say now, or "".

        `now` is monotonic seconds.
        """
        if not self._missing:
            self._first = begin
        self._missing += end - begin
        self._end = end
        if self._said_at is not None and now - self._said_at < EVERY:
            return ""
        self._said_at = now
        return self.rest()

    def rest(self) -> str:
        """Return what has not been said yet, or ""."""
        if not self._missing:
            return ""
        between = f"between bytes {self._first} and {self._end}"
        if self._missing == self._end - self._first:
            between = f"from byte {self._first} to byte {self._end}"
        missing, self._missing = self._missing, 0
        if missing == 1:
            return f"1 byte of {self._what} is missing, byte {self._first}: the cap dropped it"
        return f"{missing} bytes of {self._what} are missing, {between}: the cap dropped them"
