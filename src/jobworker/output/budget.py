"""How large a chunk each follower may be given, so that all together hold a bounded memory. Pure.

A follower holds what it was given until it comes back for more. Those that have not come back for a
while are slow: perhaps they have stopped reading. What they hold is gone from the budget, and the
others share the rest; so a crowd that stands still costs a reader beside it little. Whatever that
holds, nobody's share is less than if all had the same, which may come on top of the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_AFTER: Final = 0.5
"""Seconds that a follower that reads may hold a chunk."""


class Budget:
    """A number of bytes that followers share; `clock` returns seconds."""

    def __init__(
        self,
        total: int,
        *,
        clock: Callable[[], float],
        slow_after: float = SLOW_AFTER,
    ) -> None:
        self._total = total
        self._slow_after = slow_after
        self._clock = clock
        self._followers = 0
        self._given: dict[Share, float] = {}
        """Who holds a chunk and is not slow → since when; the oldest first."""
        self._slow: set[Share] = set()
        self._slow_bytes = 0
        """What these hold together."""

    def join(self) -> Share:
        """Return the share of another follower; `leave` it when done."""
        self._followers += 1
        return Share(self)

    def size(self) -> int:
        """Return how many bytes each follower that is not slow may hold."""
        self._find_slow()
        prompt = max(1, self._followers - len(self._slow))
        rest = max(0, self._total - self._slow_bytes)
        return max(rest // prompt, self._total // max(1, self._followers))

    def _find_slow(self) -> None:
        now = self._clock()
        while self._given:
            share, since = next(iter(self._given.items()))
            if now - since < self._slow_after:
                break
            del self._given[share]
            self._slow.add(share)
            self._slow_bytes += share.held

    def give(self, share: Share) -> None:
        """Note that a follower holds something from now on."""
        self._given[share] = self._clock()

    def take_back(self, share: Share) -> None:
        """Note that a follower holds nothing any more."""
        if self._given.pop(share, None) is None and share in self._slow:
            self._slow.remove(share)
            self._slow_bytes -= share.held

    def leave(self, share: Share) -> None:
        """Forget a follower."""
        self.take_back(share)
        self._followers -= 1


class Share:
    """One follower's part in a budget."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0
        """Bytes that the follower was given and has not come back from."""

    def size(self) -> int:
        """Return how many bytes the follower may be given next."""
        return self._budget.size()

    def give(self, size: int) -> None:
        """Note that it was given so many bytes."""
        self.held = size
        self._budget.give(self)

    def take_back(self) -> None:
        """Note that it has come back."""
        self._budget.take_back(self)
        self.held = 0

    def leave(self) -> None:
        """Give the share up."""
        self._budget.leave(self)
