"""How many streams each user may have open at a time. Pure."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from jobworker.errors import ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_STREAMS_PER_USER: Final = 2000
"""By default: a stream costs the server a descriptor, and some 170 KiB while it is not read."""


class StreamPlaces:
    """Counts the open streams of each user, and refuses those beyond `limit` (None: none)."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def taken(self, user: str) -> Iterator[None]:
        """Hold one of a user's places. Raises ResourceExhausted if there is none."""
        if self._limit is not None and self._open[user] >= self._limit:
            raise ResourceExhausted(
                f"cannot open another stream: {user} has {self._limit} open, as many as a user may "
                "have; close some, or raise --max-streams-per-user on the server"
            )
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]
