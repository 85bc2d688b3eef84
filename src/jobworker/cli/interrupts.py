"""Ctrl-C, which may come between any two steps, let in only where it does no harm."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Interrupts:
    """A handler of SIGINT that raises KeyboardInterrupt: at once, or when what is held is over.

    asyncio replaces only Python's own handler, by one that cannot interrupt a wait for a reader.
    """

    def __init__(self) -> None:
        self._held = False
        self._noted = False

    def install(self) -> None:
        """Take over from Python's own handler; a shell's decision to ignore the signal stands."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, _signal: int, _frame: Any) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._noted = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the body run to its end first."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._noted:
            self._noted = False
            raise KeyboardInterrupt


interrupts = Interrupts()
"""The one of this process: a process has one handler of a signal."""
