"""What can be known of a shim from its run directory."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from typing import TYPE_CHECKING

from jobworker.shim import wire

if TYPE_CHECKING:
    from pathlib import Path


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
