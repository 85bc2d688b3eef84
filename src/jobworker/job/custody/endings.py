"""How the main process of a job ended whose shim was dead by then: who is asked, in which order.

The keeper's note first; then what the kernel says of a process that nobody has reaped yet, which it
tells the server as it tells a tracer (proc(5), field 52 of stat); then what it says of one that was
reaped while the server held a pidfd of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from jobworker.job import processes
from jobworker.job.custody import pidfd_info
from jobworker.shim.proc import KEEPER_NAME

if TYPE_CHECKING:
    from jobworker.job.custody.end_notes import EndNotes
    from jobworker.job.record import Process
    from jobworker.shim.note import EndNote
    from jobworker.shim.proc import Stat

_POLL: Final = 0.01
_KEEPER_PATIENCE: Final = 10.0
"""Seconds that a keeper may take to note an end and reap."""
_REAPER_PATIENCE: Final = 1.0
"""Seconds that another reaper may take, where only a reaped process tells its end."""
_CAP_SYS_PTRACE: Final = 1 << 19
_CORE_DUMPED: Final = 0x80


class Ending(NamedTuple):
    """How a process ended: one of `exit_code` and `signal` is set.

    `ended_at` is seconds since the epoch and `ended_boot` on CLOCK_BOOTTIME; None if nobody looked.
    """

    exit_code: int | None
    signal: int | None
    core_dumped: bool
    ended_at: float | None = None
    ended_boot: float | None = None

    @classmethod
    def from_note(cls, note: EndNote) -> Ending:
        """Return what a keeper has noted."""
        return cls(note.exit_code, note.signal, note.core_dumped, note.ended_at, note.ended_boot)

    @classmethod
    def from_wait_status(cls, status: int) -> Ending:
        """Return what a status of wait(2) says."""
        if os.WIFSIGNALED(status):
            return cls(None, os.WTERMSIG(status), bool(status & _CORE_DUMPED))
        return cls(os.WEXITSTATUS(status), None, core_dumped=False)


class Unknown(NamedTuple):
    """Nobody can tell how the process ended; `why` in words."""

    why: str


async def find_ending(
    process: Process | None, pidfd: int | None, notes: EndNotes
) -> Ending | Unknown:
    """Return how a process that has ended did so.

    `pidfd` was opened before it was reaped, or is None.
    """
    if process is None:
        return Unknown("its shim died while it was started, and its main process is not known")
    if process.boot_id != processes.boot_id():
        return Unknown("the host was restarted while it ran")
    zombie = await _wait_for_keeper(process, notes)
    if (note := notes.of_process(process)) is not None:
        return Ending.from_note(note)
    if zombie is not None and _may_ask_for_status():
        return Ending.from_wait_status(zombie.wait_status)
    if pidfd is None:
        return Unknown(
            "its shim died before it, and whoever reaped it has left no note: its keeper was "
            "killed as well, or could not write in the run directory"
        )
    deadline = time.monotonic() + _REAPER_PATIENCE
    while (status := pidfd_info.wait_status(pidfd)) is None:
        if processes.look(process) is None or time.monotonic() > deadline:
            return Unknown(
                "its shim died before it, its keeper has left no note, and this kernel does not "
                "tell how a reaped process ended (Linux 6.15 and later do)"
            )
        await asyncio.sleep(_POLL)
    return Ending.from_wait_status(status)


async def _wait_for_keeper(process: Process, notes: EndNotes) -> Stat | None:
    """Return once the keeper has noted the end; the zombie that is left if none does."""
    deadline = time.monotonic() + _KEEPER_PATIENCE
    while (stat := processes.look(process)) is not None:
        if notes.of_process(process) is not None:
            return None
        if processes.parent_name(stat) != KEEPER_NAME or time.monotonic() > deadline:
            return stat if stat.ended else None
        await asyncio.sleep(_POLL)
    return None


def _may_ask_for_status() -> bool:
    """Whether the kernel tells this process the wait status of any other; else it says 0."""
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    ):
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & _CAP_SYS_PTRACE)
    return False
