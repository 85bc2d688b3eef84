"""The notes that keepers have left in the run directory, read by the server.

Where only root can write, so they are believed; but they may be of an earlier boot, of processes
that no job is waited for, or no notes at all, and are removed then.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.job import processes
from jobworker.shim import note as notes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobworker.job.record import JobRecord, Process
    from jobworker.shim.note import EndNote

log = logging.getLogger(__name__)

_UNFINISHED: Final = 60.0
"""Seconds after which a note that is not complete is nobody's any more."""


class EndNotes:
    """What lies in one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = str(run_dir)

    async def settled(self) -> None:
        """Return once those are there that a keeper is about to leave; it may be waited in vain."""
        await processes.keepers_settled(Path(self._run_dir))

    def of_process(self, process: Process) -> EndNote | None:
        """Return how a process ended, if a keeper has noted it."""
        note = self._read(notes.note_name(process.pid, process.start_time))
        return note if note is not None and note.boot_id == process.boot_id else None

    def of_job(self, job_id: str) -> list[EndNote]:
        """Return the notes of all processes that ended in a job's cgroup, in this boot."""
        boot_id = processes.boot_id()
        found = (self._read(name) for name in notes.note_names(self._run_dir))
        return [
            note
            for note in found
            if note is not None and note.boot_id == boot_id and note.is_of(job_id)
        ]

    def forget(self, process: Process) -> None:
        """Remove the note of a process whose end is recorded elsewhere now."""
        self._remove(notes.note_name(process.pid, process.start_time))

    def sweep(self, jobs: Iterable[JobRecord]) -> None:
        """Remove all notes but those that `jobs`, all the unfinished ones, may still need."""
        wanted, unknown = set(), []
        for job in jobs:
            if job.process is None:
                unknown.append(job.id)
            else:
                wanted.add(notes.note_name(job.process.pid, job.process.start_time))
        boot_id = processes.boot_id()
        for name in list(notes.note_names(self._run_dir)):
            if name in wanted or self._is_being_written(name):
                continue
            note = self._read(name) if unknown else None
            if note is None or note.boot_id != boot_id or not any(map(note.is_of, unknown)):
                self._remove(name)

    def _read(self, name: str) -> EndNote | None:
        try:
            return notes.read_note(self._run_dir, name)
        except (OSError, ValueError) as error:
            log.warning("cannot use the note %s: %s", name, error)
            return None

    def _remove(self, name: str) -> None:
        try:
            notes.remove_note(self._run_dir, name)
        except OSError as error:
            log.warning("cannot remove the note %s: %s", name, error)

    def _is_being_written(self, name: str) -> bool:
        if not name.endswith(notes.TEMPORARY):
            return False
        path = os.path.join(self._run_dir, notes.DIRECTORY, name)  # noqa: PTH118 - as in notes
        try:
            return abs(time.time() - os.lstat(path).st_mtime) < _UNFINISHED
        except FileNotFoundError:
            return True
