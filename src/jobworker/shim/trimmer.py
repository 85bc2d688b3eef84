"""The trimmer: a process of the shim's own that frees the heads of outputs that have a cap.

To free a part of a file takes the lock that its writers take (the inode's), so it waits while a job
writes without pause. The shim must not wait; and it must not have threads, because it clones.
So it forks, and this process is told by the shim which files there are. It ends with the shim.

A message is ``+ KEY CAP`` with the file's descriptor beside it, or ``- KEY``.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import time
from typing import Final, NoReturn

from jobworker.holes import Capped
from jobworker.shim.log import log
from jobworker.shim.proc import TRIMMER_NAME

FASTEST: Final = 2**31
"""Bytes a second that no job writes for long: a file with room for more is not looked at yet."""
SHORTEST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.1
"""Seconds between two looks at a file that grows, or that the kernel does not watch for us."""

_MAX_MESSAGE: Final = 256
_BATCH: Final = 64 * 1024
_IN_MODIFY: Final = 0x2
_OVERFLOW: Final = -1
_EVENT: Final = struct.Struct("iIII")
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15

_libc: Final = ctypes.CDLL(None, use_errno=True)


def run(sock: socket.socket, parent: int) -> NoReturn:
    """Be the trimmer of the process `parent`, which has forked this one, to the end.

    `sock` is this process's end of a pair (SOCK_SEQPACKET). All other descriptors are closed.
    """
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _libc.prctl(_PR_SET_NAME, TRIMMER_NAME.encode(), 0, 0, 0)
        if os.getppid() == parent:
            Trimmer(sock).run()
    except Exception as error:  # noqa: BLE001 - the shim starts another one
        log(f"the trimmer fails: {error!r}")
    finally:
        os._exit(1)


class _File:
    """A file to keep at its cap; `watch` is the kernel's number for it, None if it has none."""

    def __init__(self, fd: int, cap: int, watch: int | None) -> None:
        self.fd = fd
        self.capped = Capped(fd, cap)
        self.watch = watch
        self.room = 0
        self.failed = False


class Trimmer:
    """Keeps files at their caps. Where nothing is written it sleeps.

    The kernel tells which files grow (inotify(7)); after each look it sleeps for as long as the
    fullest of them has room. Files that the kernel does not watch are looked at by the clock, as
    often as they grow.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._files: dict[str, _File] = {}
        self._watches: dict[int, _File] = {}
        self._inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._messages = select.poll()
        self._messages.register(sock, select.POLLIN)
        self._all = select.poll()
        self._all.register(sock, select.POLLIN)
        if self._inotify >= 0:
            self._all.register(self._inotify, select.POLLIN)
        self._interval = SHORTEST_PAUSE

    def run(self) -> None:
        """Work until the shim hangs up."""
        while True:
            unwatched = any(file.watch is None for file in self._files.values())
            self._all.poll(self._interval * 1000 if unwatched else None)
            if self._messages.poll(0) and not self._take_message():
                return
            self._look()
            # Messages are taken meanwhile: what is new has no time to lose.
            pause = self._pause()
            until = time.monotonic() + pause
            while pause > 0 and self._messages.poll(pause * 1000):
                if not self._take_message():
                    return
                pause = until - time.monotonic()

    def _look(self) -> None:
        """Trim what has grown; look sooner again at what is not watched if that has."""
        moved = False
        for file in self._grown():
            room = file.room
            _trim(file)
            moved = moved or (file.watch is None and file.room != room)
        self._interval = SHORTEST_PAUSE if moved else min(self._interval * 2, LONGEST_PAUSE)

    def _take_message(self) -> bool:
        """Take one message; return False if the shim is gone."""
        message, fds, _, _ = socket.recv_fds(self._sock, _MAX_MESSAGE, 1)
        if not message:
            return False
        sign, key, *rest = message.decode().split()
        if sign == "-":
            self._forget(key)
        elif fds:
            self._add(key, fds[0], int(rest[0]))
        else:
            log("the trimmer has no descriptor left: a capped output is cut at its end only")
        return True

    def _add(self, key: str, fd: int, cap: int) -> None:
        self._forget(key)
        watch = -1
        if self._inotify >= 0:
            path = f"/proc/self/fd/{fd}".encode()
            watch = _libc.inotify_add_watch(self._inotify, path, _IN_MODIFY)
        file = self._files[key] = _File(fd, cap, None if watch < 0 else watch)
        if watch >= 0:
            self._watches[watch] = file
        _trim(file)

    def _forget(self, key: str) -> None:
        file = self._files.pop(key, None)
        if file is None:
            return
        if file.watch is not None and self._watches.pop(file.watch, None) is not None:
            _libc.inotify_rm_watch(self._inotify, file.watch)
        os.close(file.fd)

    def _grown(self) -> list[_File]:
        """Return the files that may have grown since the last look."""
        unwatched = [file for file in self._files.values() if file.watch is None]
        watches = self._read_watches()
        if _OVERFLOW in watches:
            return list(self._files.values())
        return [self._watches[each] for each in watches if each in self._watches] + unwatched

    def _read_watches(self) -> set[int]:
        if self._inotify < 0:
            return set()
        try:
            batch = os.read(self._inotify, _BATCH)
        except BlockingIOError:
            return set()
        return {event[0] for event in _EVENT.iter_unpack(batch)}

    def _pause(self) -> float:
        rooms = [file.room for file in self._files.values()]
        if not rooms:
            return 0
        return min(max(min(rooms) / FASTEST, SHORTEST_PAUSE), LONGEST_PAUSE)


def _trim(file: _File) -> None:
    try:
        file.room = file.capped.trim()
        file.failed = False
    except OSError as error:
        if not file.failed:
            log(f"cannot free the head of an output, trying again: {error}")
        file.failed = True
        file.room = FASTEST
