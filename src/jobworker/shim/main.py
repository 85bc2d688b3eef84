"""The shim's process: takes the lock, listens, goes into the background and serves.

The process that was started exits with status 0 once a shim listens, this one or another; else it
says on standard error what is in the way. The shim itself writes to shim.log, and so does the
keeper, its parent in the background.

Signals: SIGINT, SIGHUP and SIGPIPE are ignored. SIGTERM means "leave as soon as you can": at once
without jobs, else when the last one has ended and its end is written down. Until then everything
goes on as before, because nobody else could tell how the jobs end. A server that is still
connected then loses its connection, and starts a new shim when it needs one.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from typing import Final

from jobworker import garbage, steps
from jobworker.shim import listener, wire
from jobworker.shim.keeper import leave_to_keeper
from jobworker.shim.listener import Listener
from jobworker.shim.log import log
from jobworker.shim.loop import Loop
from jobworker.shim.spawn import Spawner
from jobworker.shim.supervisor import Supervisor

_PATIENCE: Final = 5.0
"""Seconds that a shim which holds the lock may take until it listens, or until it is gone."""
_PAUSE: Final = 0.02
_JOB_DESCRIPTORS: Final = 1024


def main() -> None:
    """Run a shim for the run directory that is the only argument."""
    run_dir = sys.argv[1]
    try:
        start(run_dir)
    except OSError as error:
        sys.exit(f"cannot start a shim in {run_dir}: {error}")


def start(run_dir: str) -> None:
    """Start a shim in the background, unless there is one already; return in neither process.

    Raises OSError if the run directory cannot be used.
    """
    garbage.put_off()
    os.umask(0o077)
    directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    held = _lock(directory)
    if held is None:
        os._exit(0)
    steps.reached("shim.begin.locked")
    listening = Listener(directory, held)
    steps.reached("shim.begin.listening")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    logfile = os.open(wire.LOG_NAME, flags, 0o600, dir_fd=directory)
    if os.fork() > 0:
        os._exit(0)
    run_dir = os.path.abspath(run_dir)  # noqa: PTH100 - no pathlib in the shim
    _go_into_background(logfile)
    boot_id = _boot_id()
    leave_to_keeper(run_dir, boot_id)  # The keeper never looks for garbage: it makes next to none.
    garbage.look_from_now_on()
    _serve(listening, boot_id)


def _lock(directory: int) -> int | None:
    """Take the lock for the life of this process, or return None if another shim listens."""
    deadline = time.monotonic() + _PATIENCE
    while (held := listener.lock(directory)) is None:
        if listener.answers(directory):
            return None
        if time.monotonic() > deadline:
            raise TimeoutError("another process holds its lock, but does not listen")
        time.sleep(_PAUSE)
    return held


def _go_into_background(logfile: int) -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(logfile, 1)
    os.dup2(logfile, 2)
    for fd in (null, logfile):
        if fd > 2:
            os.close(fd)


def _serve(listening: Listener, boot_id: str) -> None:
    loop = Loop()
    terminated = _set_signals()
    spawner = Spawner(_raise_descriptor_limit())
    supervisor = Supervisor(loop, listening, spawner, boot_id=boot_id)
    loop.watch(terminated, select.EPOLLIN, lambda: _leave(supervisor, terminated))
    log(f"shim {os.getpid()} serves")
    steps.reached("shim.begin.serving")
    supervisor.run()
    log(f"shim {os.getpid()} leaves")
    os._exit(0)


def _raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit on descriptors to the hard one; return what jobs are to have.

    The shim holds three for each job. Jobs get what systemd gives to services: a soft limit above
    1024 breaks programs that use select(2), and those that need more raise it (systemd.exec(5)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(_JOB_DESCRIPTORS, hard), hard


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - no pathlib in the shim
        return file.read().strip()


def _set_signals() -> int:
    """Set all dispositions that matter; return a descriptor that is readable after SIGTERM.

    SIGCHLD too: if whoever started the shim ignores it, the kernel keeps no wait statuses.
    """
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    readable, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return readable


def _leave(supervisor: Supervisor, terminated: int) -> None:
    try:
        os.read(terminated, 4096)
    except BlockingIOError:
        return
    supervisor.leave()
