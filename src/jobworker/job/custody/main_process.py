"""Which process is a job's main one, when the shim that started it died before it could say so."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from jobworker.job import processes
from jobworker.job.record import Process
from jobworker.shim.proc import KEEPER_NAME, SHIM_NAME, TICKS, Stat, read_stat

if TYPE_CHECKING:
    from jobworker.cgroups import Cgroup
    from jobworker.job.custody.end_notes import EndNotes
    from jobworker.shim.note import EndNote

_POLL: Final = 0.01


async def find_main_process(cgroup: Cgroup, notes: EndNotes) -> Stat | EndNote | None:
    """Return the main process of a job, or the note of its end; None if neither is there.

    It is the first process of the job, and all others come from it. So where the keeper has noted
    all that ended before, it is the eldest of those that are noted and of the living that the
    shim, or its keeper, is the parent of. One that is about to execute its command is waited for.
    """
    while True:
        noted: list[Stat | EndNote] = list(notes.of_job(cgroup.id))
        eldest = min([*noted, *_living(cgroup)], key=_age, default=None)
        if not isinstance(eldest, Stat) or eldest.executed:
            return eldest
        await asyncio.sleep(_POLL)


class _Identified(Protocol):
    """What knows a process's pid and start time."""

    @property
    def pid(self) -> int: ...
    @property
    def start_time(self) -> int: ...


def identity(main: _Identified) -> Process:
    """Return what tells a process from all others."""
    boot_id = processes.boot_id()
    return Process(boot_id=boot_id, pid=main.pid, start_time=main.start_time)


def started_at(process: Process) -> float:
    """Return when a process of this boot was started, in seconds since the epoch."""
    return time.time() - (processes.boot_time() - process.start_time / TICKS)


def _age(process: Stat | EndNote) -> tuple[int, int]:
    return process.start_time, process.pid


def _living(cgroup: Cgroup) -> list[Stat]:
    found = [read_stat(pid) for pid in cgroup.processes()]
    return [
        stat
        for stat in found
        if stat is not None
        and not stat.ended
        # It leads a session, or has not come as far as that.
        and (stat.session == stat.pid or not stat.executed)
        and processes.parent_name(stat) in (KEEPER_NAME, SHIM_NAME)
    ]
