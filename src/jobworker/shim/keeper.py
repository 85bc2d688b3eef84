"""The shim's parent, which writes down how jobs end when the shim has been killed.

A parent alone is told how a process ended, and the kernel gives the children of a dead process to
the nearest ancestor that has declared itself a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), before
the dead one can be waited for. So the keeper sits between init and the shim and does nothing: it
reaps what jobs leave behind. When the shim dies otherwise than by leaving, the jobs' main processes
are the keeper's, and the end of each is written down (`note`) before it is reaped.

What it promises to servers: a shim that was killed is noted and reaped *after* all of its jobs that
had ended by then. So whoever sees the shim's note, and neither a note nor a process of a job, knows
that the job had none.

It ignores every signal that can be, holds no descriptor but the log, and leaves without children.
If it is killed as well, the jobs are init's, who keeps no notes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import TYPE_CHECKING, Final, NoReturn

from jobworker.shim.log import log
from jobworker.shim.note import EndNote, write_note
from jobworker.shim.proc import (
    KEEPER_NAME,
    SHIM_NAME,
    TRIMMER_NAME,
    children,
    read_cgroup,
    read_stat,
)
from jobworker.shim.spawn import close_from

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.1
"""Seconds between two attempts at a note."""

_libc = ctypes.PyDLL(None, use_errno=True)


def set_name(name: str) -> None:
    """Give this process's (only) thread a name, which ps(1) and /proc/<pid>/comm show."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def leave_to_keeper(run_dir: str, boot_id: str) -> None:
    """Fork; return in the child, which is to be the shim, and be its keeper in this process.

    Where the kernel refuses a subreaper or the fork fails, this process itself goes on as the shim.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log(f"no keeper: {os.strerror(ctypes.get_errno())}")
        return
    try:
        shim = os.fork()
    except OSError as error:
        log(f"no keeper: {error}")
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return
    if shim == 0:
        os.setsid()
        set_name(SHIM_NAME)
        return
    _keep(shim, run_dir, boot_id)


def _keep(shim: int, run_dir: str, boot_id: str) -> NoReturn:
    """Be the keeper until there is nobody to wait for."""
    try:
        set_name(KEEPER_NAME)
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_from(3)
        keeper = Keeper(shim, lambda note: write_note(run_dir, note), boot_id)
        while keeper.wait():
            pass
    except BaseException as error:  # noqa: BLE001 - nobody is there to be told, but the log
        log(f"keeper {os.getpid()} failed: {error!r}")
    finally:
        os._exit(0)


class Keeper:
    """Waits for all children of this process, one of which is the shim.

    `write` leaves a note, or raises OSError.
    """

    def __init__(self, shim: int, write: Callable[[EndNote], None], boot_id: str) -> None:
        self._shim = shim
        self._write = write
        self._boot_id = boot_id
        self._heirs: set[int] | None = None
        self._writable = True

    def wait(self) -> bool:
        """Wait for the next child's end, and reap it; return False when there is no more to do."""
        try:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return False
        if child is None:
            return True
        if self._heirs is None:
            # If the child was the shim's, then the shim was dead before the child was ours.
            end = _look(self._shim)
            if end is not None:
                return self._take_over(end)
        self._reap(child)
        return True

    def _take_over(self, end: os.waitid_result) -> bool:
        """The shim has ended: unless it has left, its jobs are ours from now on."""
        if (end.si_code, end.si_status) == (os.CLD_EXITED, 0):
            os.waitpid(self._shim, 0)
            return False
        # What jobs had left behind before is among them too.
        self._heirs = {pid for pid in children(os.getpid()) if pid != self._shim}
        log(f"shim {self._shim} has died; keeper {os.getpid()} waits for {len(self._heirs)}")
        for pid in list(self._heirs):
            if (child := _look(pid)) is not None:
                self._reap(child)
        # Its own note says that those of all others who had ended are there.
        self._heirs.add(self._shim)
        self._reap(end)
        return bool(self._heirs)

    def _reap(self, child: os.waitid_result) -> None:
        """Reap a child that has ended; if it was a job's, only after that is written down."""
        if self._heirs is not None and child.si_pid in self._heirs:
            self._heirs.discard(child.si_pid)
            try:
                self._record(child)
            except Exception as error:  # noqa: BLE001 - others must still be reaped
                log(f"cannot note the end of process {child.si_pid}: {error!r}")
        os.waitpid(child.si_pid, 0)

    def _record(self, child: os.waitid_result) -> None:
        stat = read_stat(child.si_pid)
        if stat is None or stat.session not in (child.si_pid, self._shim):
            return  # No main process: that leads a session, or has not come as far as that.
        if stat.name == TRIMMER_NAME:
            return
        exited = child.si_code == os.CLD_EXITED
        note = EndNote(
            boot_id=self._boot_id,
            pid=child.si_pid,
            start_time=stat.start_time,
            exit_code=child.si_status if exited else None,
            signal=None if exited else child.si_status,
            core_dumped=child.si_code == os.CLD_DUMPED,
            executed=stat.executed,
            cgroup=read_cgroup(child.si_pid),
            ended_at=time.time(),
            ended_boot=time.clock_gettime(time.CLOCK_BOOTTIME),
        )
        # After one that could not be written, the others wait no longer: many may end together.
        attempts = _ATTEMPTS if self._writable else 1
        for attempt in range(1, attempts + 1):
            try:
                self._write(note)
            except OSError as error:
                self._writable = False
                if attempt == attempts:
                    log(f"cannot note how process {note.pid} ended: {error}: {note.to_json()}")
                else:
                    time.sleep(_PAUSE)
            else:
                self._writable = True
                return


def _look(pid: int) -> os.waitid_result | None:
    """Return how a child ended, if it has, without reaping it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
