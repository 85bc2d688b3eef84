"""One end of the Unix stream socket between server and shim: messages and file descriptors.

Both sides use it, the shim on its epoll loop, the server on asyncio: it never blocks.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobworker.shim import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK: Final = 64 * 1024
_MAX_PENDING: Final = 2 * wire.MAX_MESSAGE
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(wire.MAX_FDS * struct.calcsize("i"))


class Received(NamedTuple):
    """A message and its descriptors, which belong to whoever takes it.

    `fds` is empty although the message announced some if this process had no free descriptor
    numbers for them (the kernel drops what does not fit, unix(7)).
    """

    message: dict[str, Any]
    fds: list[int]


class Channel:
    """Reads and writes messages on a connected socket, which it owns.

    The kernel hands over the descriptors of at most one sendmsg with each recvmsg, and never
    before the bytes they were sent with; so they wait in line for the messages that announce them.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = wire.Decoder()
        self._batches: deque[list[int] | None] = deque()
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._pending = 0

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def read(self) -> None:
        """Take in what has arrived, once; `next` gives it out.

        Raises EOFError at the end of the stream and OSError if the connection is broken. Nothing
        happens if there is nothing to read.
        """
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                _CHUNK, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        fds = _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            _close_all(fds)
            self._batches.append(None)
        elif fds:
            self._batches.append(fds)
        if not data:
            raise EOFError
        self._decoder.feed(data)

    def next(self) -> Received | None:
        """Return the next complete message, or None.

        Raises ValueError if what came is not this protocol; the channel is of no use then.
        """
        message = self._decoder.next()
        if message is None:
            if self._batches and not self._decoder.partial:
                raise ValueError("descriptors that no message announced")
            return None
        count = message.get("fds", 0)
        if not count:
            return Received(message, [])
        if not self._batches:
            raise ValueError("a message without the descriptors that it announced")
        fds = self._batches.popleft()
        if fds is not None and len(fds) != count:
            _close_all(fds)
            raise ValueError("a message with other descriptors than it announced")
        return Received(message, fds or [])

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message, or as much of it as is possible now; `flush` sends the rest.

        The descriptors stay the caller's, who may close them after the call. Raises OSError if the
        connection is broken, or if the peer has not read for so long that too much is waiting.
        """
        view = memoryview(wire.encode({**message, "fds": len(fds)} if fds else message))
        if not self._outgoing:
            sent = self._try_send(view, fds)
            if sent:
                view, fds = view[sent:], ()
        if not view:
            return
        if self._pending + len(view) > _MAX_PENDING:
            raise ConnectionAbortedError("the peer does not read what is sent to it")
        copies: list[int] = []
        self._outgoing.append((view, copies))
        self._pending += len(view)
        copies.extend(os.dup(fd) for fd in fds)

    def flush(self) -> None:
        """Send what is waiting, as far as possible. Raises OSError if the connection is broken."""
        while self._outgoing:
            view, fds = self._outgoing[0]
            sent = self._try_send(view, fds)
            if not sent:
                return
            self._pending -= sent
            _close_all(fds)
            if sent == len(view):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (view[sent:], [])

    @property
    def pending(self) -> int:
        """How many bytes wait for `flush`."""
        return self._pending

    def close(self) -> None:
        """Close the socket and every descriptor that nobody has taken."""
        self._socket.close()
        for fds in self._batches:
            _close_all(fds or [])
        for _, fds in self._outgoing:
            _close_all(fds)
        self._batches.clear()
        self._outgoing.clear()

    def _try_send(self, view: memoryview, fds: Sequence[int]) -> int:
        rights = struct.pack(f"{len(fds)}i", *fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        try:
            return self._socket.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(data) // struct.calcsize("i")
            fds.extend(struct.unpack_from(f"{count}i", data))
    return fds


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
