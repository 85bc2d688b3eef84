"""Threads for what may wait for the kernel or a disk, while the event loop goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


class Threads(ThreadPoolExecutor):
    """Threads of their own; leaving (``with``) waits until what they do is done.

    The event loop's threads are for what is short: they look users up, also while these wait.
    """

    async def run(self, action: Callable[..., _Result], *arguments: object) -> _Result:
        """Call `action` in a thread. Cancelling the caller does not end what has begun."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self, partial(action, *arguments))
