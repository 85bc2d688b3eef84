"""Why a shim does not answer, and what helps: which process it is, and what /proc says of it.

Blocking: for a thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.shim import wire
from jobworker.shim.proc import SHIM_NAME, processes

if TYPE_CHECKING:
    from jobworker.shim.proc import Stat

_STATES: Final = {
    "T": "is stopped (state T, as by SIGSTOP); kill -CONT {pid} lets it go on",
    "t": "is held by a debugger (state t, as by strace or gdb); end that",
    "D": "waits in the kernel (state D, as for a file system that hangs)",
}
"""What ps(1) calls the states in which a process cannot answer."""


def explain_silence(run_dir: Path, version: int) -> str:
    """Say that the shim of a version does not answer, who that is, and the remedy."""
    said = f"the shim in {run_dir} does not answer"
    shim = _find_shim(run_dir, version)
    if shim is None:
        return f"{said}, and its process cannot be found"
    state = _STATES.get(shim.state, "is busy or hangs (state {state})")
    return (
        f"{said}: process {shim.pid} {state.format(pid=shim.pid, state=shim.state)}. After kill -9 "
        f"{shim.pid} its jobs go on, and the server starts another shim"
    )


def _find_shim(run_dir: Path, version: int) -> Stat | None:
    """Return the process that holds the lock of a shim.

    Neither the socket nor the lock names it: both were opened by the process that started it.
    """
    lock = str(run_dir.resolve() / wire.lock_name(version))
    holders = {each.pid: each for each in processes() if each.name == SHIM_NAME}
    holders = {pid: each for pid, each in holders.items() if _has_open(pid, lock)}
    # Until it executes a command, a child of the shim is called so too, and has the lock.
    return next((each for each in holders.values() if each.parent not in holders), None)


def _has_open(pid: int, path: str) -> bool:
    try:
        return any(_target(each) == path for each in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - "… (deleted)" is no path
    except OSError:
        return ""
