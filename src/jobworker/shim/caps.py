"""The caps on outputs, as the shim sees to them: which there are, and that a trimmer runs.

While a job runs, the trimmer cuts its outputs (see there why that is a process). When it has ended,
nobody writes any more, and they are cut here, to the byte, before the end is told.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from jobworker.holes import Capped
from jobworker.shim import trimmer
from jobworker.shim.log import log
from jobworker.shim.spawn import close_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobworker.shim.loop import Loop

_RETRY: Final = 1.0
"""Seconds until another trimmer is made, or told what the last one did not take."""
_LINGER: Final = 10.0
"""Seconds that a trimmer without an output waits for the next."""


class _Output(NamedTuple):
    fd: int
    cap: int


class _Message(NamedTuple):
    """What a trimmer is to be told; a file's descriptor is open as long as the job is known."""

    job_id: str
    text: str
    fds: tuple[int, ...] = ()


class Caps:
    """Keeps the outputs of live jobs at their caps, through a trimmer that it starts when needed.

    Nothing here raises or waits: a job whose output cannot be cut goes on, and the log says so.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._outputs: dict[str, list[_Output]] = {}
        self._trimmer: tuple[int, int, socket.socket] | None = None
        self._unsent: list[_Message] = []

    @property
    def trimmer(self) -> int | None:
        """The pid of the trimmer, if one runs."""
        return None if self._trimmer is None else self._trimmer[0]

    def add(self, job_id: str, fds: Sequence[int], cap: int | None) -> None:
        """Keep these files of a job at `cap` bytes each (None: no cap) until `finish`."""
        if cap is None:
            return
        outputs = self._outputs[job_id] = [_Output(fd, cap) for fd in fds]
        self._loop.cancel("trimmer leaves")
        if self._trimmer is None:
            self._start()
        else:
            self._tell(job_id, outputs)

    def finish(self, job_id: str) -> None:
        """Cut the outputs of a job to their caps, now that nobody writes them, and forget them."""
        outputs = self._outputs.pop(job_id, [])
        for number, output in enumerate(outputs):
            self._send(_Message(job_id, f"- {job_id}/{number}"))
            try:
                Capped(output.fd, output.cap).trim(slack=0)
            except OSError as error:
                log(f"job {job_id}: cannot cut its output to its cap: {error}")
        if outputs and not self._outputs:
            self._loop.call_at("trimmer leaves", time.monotonic() + _LINGER, self._hang_up)

    def _start(self) -> None:
        """Make a trimmer and tell it all there is to know; if that fails, try again later."""
        if self._trimmer is not None or not self._outputs:
            return
        try:
            pid, pidfd, sock = _fork()
        except OSError as error:
            log(f"cannot start a trimmer, trying again; outputs may outgrow their caps: {error}")
            self._loop.call_at("trimmer", time.monotonic() + _RETRY, self._start)
            return
        self._trimmer = (pid, pidfd, sock)
        self._loop.watch(pidfd, select.EPOLLIN, self._on_death)
        self._unsent.clear()
        for job_id, outputs in self._outputs.items():
            self._tell(job_id, outputs)

    def _tell(self, job_id: str, outputs: list[_Output]) -> None:
        for number, output in enumerate(outputs):
            text = f"+ {job_id}/{number} {output.cap}"
            self._send(_Message(job_id, text, (output.fd,)))

    def _send(self, message: _Message) -> None:
        self._unsent.append(message)
        self._flush()

    def _flush(self) -> None:
        """Send what the trimmer takes without waiting, in order; the rest later."""
        if self._trimmer is None:
            self._unsent.clear()  # the next one is told everything
            return
        while self._unsent:
            message = self._unsent[0]
            if not message.fds or message.job_id in self._outputs:
                try:
                    socket.send_fds(self._trimmer[2], [message.text.encode()], message.fds)
                except BlockingIOError:
                    self._loop.call_at("trimmer", time.monotonic() + _RETRY, self._flush)
                    return
                except OSError as error:
                    log(f"lost the trimmer: {error}")
                    return  # its pidfd tells
            del self._unsent[0]

    def _hang_up(self) -> None:
        """Let a trimmer without work leave: it does at the end of its socket."""
        if self._trimmer is not None:
            self._trimmer[2].shutdown(socket.SHUT_RDWR)

    def _on_death(self) -> None:
        if self._trimmer is None:
            return
        _, pidfd, sock = self._trimmer
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is None:
            return
        self._loop.unwatch(pidfd)
        os.close(pidfd)
        sock.close()
        self._trimmer = None
        if self._outputs:
            log("the trimmer has ended; starting another one")
            self._loop.call_at("trimmer", time.monotonic() + _RETRY, self._start)


def _fork() -> tuple[int, int, socket.socket]:
    """Make a trimmer; return its pid, its pidfd and this end of the socket. Raises OSError."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become_trimmer(its, parent)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # a child that nobody has reaped: no other has this pid
            os.waitpid(pid, 0)
            raise
    except OSError:
        ours.close()
        raise
    finally:
        its.close()
    ours.setblocking(False)
    return pid, pidfd, ours


def _become_trimmer(sock: socket.socket, parent: int) -> None:
    try:
        gc.disable()  # what was the shim's must not close descriptors that are numbered anew
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # it goes when the shim does
        if sock.fileno() != 3:
            os.dup2(sock.fileno(), 3)
        close_from(4)
        trimmer.run(socket.socket(fileno=3), parent)
    finally:
        os._exit(1)
