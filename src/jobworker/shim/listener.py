"""The shim's lock and its listening socket, both in the run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Final

from jobworker.shim import wire

_BACKLOG: Final = 128


def socket_address(run_dir: int, name: str = wire.SOCKET_NAME) -> str:
    """Return an address for the socket `name` in the directory `run_dir` (a descriptor).

    A socket's address holds 107 bytes (unix(7)); the way through /proc is short wherever it leads.
    """
    return f"/proc/self/fd/{run_dir}/{name}"


def lock(run_dir: int) -> int | None:
    """Take the lock that a shim holds for life. Return its descriptor, or None if another has it.

    Descriptors that a fork copies share the lock, so it is held on in the background.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(wire.LOCK_NAME, flags, 0o600, dir_fd=run_dir)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def answers(run_dir: int) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(socket_address(run_dir))
        except OSError:
            return False
    return True


class Listener:
    """The listening socket. Whoever opens it must hold the lock, whose descriptor is `held`."""

    def __init__(self, run_dir: int, held: int) -> None:
        self._run_dir = run_dir
        self._held = held
        self._name: tuple[int, int] | None = None
        self.open()

    def open(self) -> None:
        """Listen, in place of whatever socket has been left behind."""
        self._unlink()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._socket.bind(socket_address(self._run_dir))
        os.chmod(wire.SOCKET_NAME, 0o600, dir_fd=self._run_dir)
        self._socket.listen(_BACKLOG)
        self._name = self._identity(wire.SOCKET_NAME)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """Return the next connection, or None if there is none. Raises OSError."""
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None

    def is_unreachable(self) -> bool:
        """Whether the socket's name is gone, or another's, and nobody else may listen in its place.

        Where the lock's name is gone too, another shim may have taken over; that is let be.
        """
        if self._identity(wire.SOCKET_NAME) == self._name:
            return False
        held = os.fstat(self._held)
        return self._identity(wire.LOCK_NAME) == (held.st_dev, held.st_ino)

    def reopen(self) -> None:
        """Listen under the old name; connections that nobody has accepted are lost."""
        self._socket.close()
        self.open()

    def retire(self) -> socket.socket | None:
        """Take the socket away and close it; return a connection that was made before that.

        Others that were made just then are closed unheard; those clients start a shim.
        """
        self._unlink()
        try:
            return self.accept()
        finally:
            self._socket.close()

    def _identity(self, name: str) -> tuple[int, int] | None:
        try:
            status = os.stat(name, dir_fd=self._run_dir, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _unlink(self) -> None:
        try:
            os.unlink(wire.SOCKET_NAME, dir_fd=self._run_dir)
        except FileNotFoundError:
            return
