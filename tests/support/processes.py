"""The program `jobworker` run to its end, and what can be known of a process by its pid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

JOBWORKER = (sys.executable, "-m", "jobworker.daemon")

# Modules are loaded before: the interpreter may lie where only root can read.
_AS_NOBODY = """
import encodings.idna, os, pwd  # of which resolving a host name loads the first
import jobworker.daemon.check, jobworker.daemon.main, jobworker.daemon.serve
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
jobworker.daemon.main.main()
"""


def environment(**settings: str) -> dict[str, str]:
    """Return the environment without settings of the person who runs the tests, and `settings`."""
    foreign = ("JOBWORKER_", "GRPC_", "NOTIFY_SOCKET")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "XDG_CONFIG_HOME": "/nonexistent", "NO_COLOR": "1", **settings}


def jobworker(
    *arguments: str | Path, as_nobody: bool = False, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``jobworker`` to its end, as root or as the user nobody."""
    program = (sys.executable, "-c", _AS_NOBODY) if as_nobody else JOBWORKER
    return subprocess.run(
        [*program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment() if environ is None else dict(environ),
        timeout=PATIENCE,
        check=False,
    )


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended; init may not have reaped it yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
