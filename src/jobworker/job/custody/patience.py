"""How long the shim is given, so that one that hangs hangs nobody else."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from jobworker.errors import ShimUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAUNCH: Final = 60.0
"""Seconds; an execve takes that long only on a file system that hangs."""
STOP: Final = 10.0
"""Seconds until the shim has accepted a stop, not until the job has ended."""
RECONCILE: Final = 3.0
"""Seconds that a new connection waits for jobs whose execve has not come to an end yet."""


@asynccontextmanager
async def at_most(seconds: float, what: str) -> AsyncIterator[None]:
    """Raise ShimUnavailable if the block takes longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ShimUnavailable(f"the shim did not {what} within {seconds:g} s") from None
