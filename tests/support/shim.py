"""What can be known of a shim from its run directory."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from pathlib import Path

from jobworker.shim import wire
from jobworker.shim.proc import KEEPER_NAME, processes


def shim_pid(run_dir: Path) -> int:
    """Return the pid of the last shim that served, as its log names it."""
    return int(re.findall(rb"shim (\d+) serves", (run_dir / wire.LOG_NAME).read_bytes())[-1])


def signal_shim(run_dir: Path, signum: signal.Signals) -> None:
    """Send a signal to the shim."""
    pidfd = os.pidfd_open(shim_pid(run_dir))
    try:
        signal.pidfd_send_signal(pidfd, signum)
    finally:
        os.close(pidfd)


def keepers(run_dir: Path) -> list[int]:
    """Return the pids of the keepers that write into a run directory's log."""
    log = str(run_dir / wire.LOG_NAME)
    return [each.pid for each in processes() if each.name == KEEPER_NAME and _log(each.pid) == log]


def _log(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink())
    except OSError:
        return ""


def all_is_gone(run_dir: Path) -> bool:
    """Whether neither a shim nor a keeper of a run directory is left."""
    return shim_is_gone(run_dir) and not keepers(run_dir)


def shim_is_gone(run_dir: Path) -> bool:
    """Whether nobody holds the shim's lock."""
    try:
        file = (run_dir / wire.LOCK_NAME).open("rb")
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
