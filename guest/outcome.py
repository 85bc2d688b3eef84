"""What the end of a guest means. Pure."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from guest.failure import GuestFailed

TAIL: Final = 40
"""Lines of the console that an error shows."""

_PANIC: Final = re.compile(r"^\[ *[0-9.]+\] (Kernel panic - .*)$", re.MULTILINE)


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
    panic = _PANIC.search(ended.console)
    if panic:
        problem = f"the guest's kernel panicked: {panic[1]}"
    elif ended.stopped_after is not None:
        problem = f"the guest had not ended after {ended.stopped_after:g} s and was stopped"
    elif ended.qemu_status != 0:
        problem = f"QEMU ended with status {ended.qemu_status}"
    else:
        report = _unpack(archive)
        if report is not None:
            return report
        problem = "the guest powered off without a whole report"
    last = "\n".join(f"  | {line}" for line in ended.console.splitlines()[-TAIL:])
    raise GuestFailed(f"{problem}. The end of its console:\n{last}")


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
