"""When something that failed is tried again, and when it is hopeless. Pure."""

from __future__ import annotations

import errno
from typing import Final

FIRST: Final = 0.25
"""Seconds until the first repetition; each pause is twice as long as the one before."""
LONGEST: Final = 10.0
"""Seconds."""
ATTEMPTS: Final = 10
"""How often what fails for a reason that does not pass is tried; that takes 46 seconds."""

TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ESTALE,
    }
)
"""What can pass without anybody looking after this very job: tried again for ever."""


class Retry:
    """The attempts at one thing. `failures` counts those that have failed."""

    __slots__ = ("_hopeless", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._hopeless = 0

    def after(self, error: Exception) -> float | None:
        """Return the seconds until the next attempt, or None if `error` was the last straw."""
        pause = min(FIRST * 2.0 ** min(self.failures, 16), LONGEST)
        self.failures += 1
        if not (isinstance(error, OSError) and error.errno in TRANSIENT):
            self._hopeless += 1
        return None if self._hopeless >= ATTEMPTS else pause
