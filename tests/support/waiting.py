"""Waiting for what has no event of its own: a condition, and a deadline that fails the test."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 60.0
"""Seconds that anything may take that takes far less than one on an idle machine.

An emulated guest on a busy machine is many times slower.
"""

_INTERVAL = 0.005


def wait_until(
    condition: Callable[[], bool], what: str = "the condition", patience: float = PATIENCE
) -> None:
    """Poll until `condition` holds; after `patience` seconds fail, saying `what` did not happen."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience:g} s in vain: {what}")
        time.sleep(_INTERVAL)


async def until(
    condition: Callable[[], bool | Awaitable[bool]],
    what: str = "the condition",
    patience: float = PATIENCE,
) -> None:
    """Do the same and let the event loop go on; `condition` may be a coroutine function."""
    deadline = time.monotonic() + patience
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience:g} s in vain: {what}")
        await asyncio.sleep(_INTERVAL)
