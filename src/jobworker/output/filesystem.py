"""Which file system a directory is on, in words (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOUNTINFO: Final = Path("/proc/self/mountinfo")


def file_system(directory: Path, mountinfo: Path = _MOUNTINFO) -> str:
    """Return the type of the file system that `directory` is on, or "unknown"."""
    where = directory.resolve()
    found = "unknown"
    longest = -1
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return found
    for line in lines:
        place, _, source = line.partition(" - ")
        fields = place.split(" ")
        if len(fields) < 5 or not source:
            continue
        mounted_at = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        # Of mounts at the same place the last one is on top.
        if where.is_relative_to(mounted_at) and len(mounted_at.parts) >= longest:
            longest = len(mounted_at.parts)
            found = source.split(" ")[0]
    return found
