"""What the end of a guest means. Pure."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from guest.failure import GuestFailed

LINES_SHOWN: Final = 40
"""How much of the console an error shows: its end, or what is before and after a panic."""

_PANIC: Final = re.compile(r"\[ *[0-9.]+\] (Kernel panic - .*)")


@dataclass(frozen=True, slots=True)
class Ended:
    """A guest that has ended: QEMU's exit status, and what the console said.

    `stopped_after` is the time limit in seconds if that has ended it.
    """

    qemu_status: int
    console: str
    stopped_after: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What the command in the guest brought out: its exit status, and files by name."""

    status: int
    files: dict[str, bytes] = field(default_factory=dict)


def judge(ended: Ended, archive: bytes) -> Report:
    """Return the report in the guest's archive.

    Raises GuestFailed, with the end of the console, if the guest has not come to a good end or the
    report is not whole.
    """
    lines = ended.console.splitlines()
    for number, line in enumerate(lines):
        if panic := _PANIC.fullmatch(line):
            raise _failure(f"the guest's kernel panicked: {panic[1]}", lines, number)
    if ended.stopped_after is not None:
        problem = f"the guest had not ended after {ended.stopped_after:g} s and was stopped"
        raise _failure(problem, lines)
    if ended.qemu_status != 0:
        raise _failure(f"QEMU ended with status {ended.qemu_status}", lines)
    report = _unpack(archive)
    if report is None:
        raise _failure("the guest powered off without a whole report", lines)
    return report


def _failure(problem: str, console: list[str], panic: int | None = None) -> GuestFailed:
    if panic is None:
        shown = console[-LINES_SHOWN:]
    else:
        shown = console[max(0, panic - LINES_SHOWN) : panic + LINES_SHOWN]
    excerpt = "\n".join(f"  | {line}" for line in shown) or "  (nothing)"
    return GuestFailed(f"{problem}. Its console said:\n{excerpt}")


def _unpack(archive: bytes) -> Report | None:
    """Return what is in the guest's archive; names lose their directories, only files count."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            files = {
                PurePosixPath(member.name).name: content.read()
                for member in members
                if (content := members.extractfile(member)) is not None
            }
        return Report(int(files.pop("status")), files)
    except (tarfile.TarError, KeyError, ValueError):
        return None
