"""What /proc tells of the processes of a server that is measured."""

from __future__ import annotations

import re
from pathlib import Path


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def watches(pid: int) -> int:
    """Return how many inotify watches a process has (proc_pid_fdinfo(5))."""
    count = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            count += path.read_bytes().count(b"inotify wd:")
        except FileNotFoundError:
            continue
    return count


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    return _field(Path(f"/proc/{pid}/status"), "VmRSS")


def proportional_kib(pid: int) -> int:
    """Return the memory of a process, with each shared page divided by those who share it."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def command_line(pid: int) -> bytes:
    """Return the arguments of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def shim_pids(run_dir: Path) -> list[int]:
    """Return the shim's processes, its keeper's too: those that write to the log in `run_dir`."""
    log = run_dir / "shim.log"
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if (process / "fd/1").readlink() == log:
                    found.append(int(process.name))
            except OSError:
                continue
    return found


def _field(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0
