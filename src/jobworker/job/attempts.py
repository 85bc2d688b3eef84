"""What has failed, and when it is tried again: later each time, so that nothing spins. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_PAUSE: Final = 30.0
LONGEST_PAUSE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class _Failure:
    pause: float
    until: float


class Attempts:
    """Failures by what they concern. Times are seconds of a clock that never goes back."""

    def __init__(
        self, *, first_pause: float = FIRST_PAUSE, longest_pause: float = LONGEST_PAUSE
    ) -> None:
        self._first = first_pause
        self._longest = longest_pause
        self._failures: dict[str, _Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, what: str, now: float) -> bool:
        """Note a failure; return whether it is the first one, which is worth a word."""
        before = self._failures.get(what)
        pause = self._first if before is None else min(2 * before.pause, self._longest)
        self._failures[what] = _Failure(pause, now + pause)
        return before is None

    def succeeded(self, what: str) -> None:
        """Forget the failures of what has succeeded."""
        self._failures.pop(what, None)

    def held(self, now: float) -> frozenset[str]:
        """Return what is not to be tried yet."""
        return frozenset(what for what, failure in self._failures.items() if failure.until > now)

    def pause(self, now: float) -> float | None:
        """Return the seconds until the next one may be tried, 0 if one may be now; or None."""
        if not self._failures:
            return None
        return max(0.0, min(failure.until for failure in self._failures.values()) - now)
