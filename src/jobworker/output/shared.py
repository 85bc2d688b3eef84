"""Chunks that several followers of one output want: read and encoded once while they are in step.

The chunks of a file are kept for as long as a file has several followers, for HOLD seconds after
somebody has taken them, and for all files together up to BUDGET bytes. A file is known by its
device and inode: the kernel gives an inode to no other file while somebody has it open, and what is
kept of a file is forgotten with its last follower.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

    from jobworker.output.chunk import Chunk

HOLD: Final = 0.1
"""Seconds that a chunk is kept after it was last taken."""
BUDGET: Final = 32 * 1024 * 1024
"""Bytes that are kept at most."""


class Sharing:
    """The chunks that are kept of all files; it belongs to one event loop."""

    def __init__(self, *, hold: float = HOLD, budget: int = BUDGET) -> None:
        self._hold = hold
        self._budget = budget
        self._files: dict[Hashable, SharedFile] = {}
        self._kept: OrderedDict[tuple[SharedFile, Hashable], tuple[Chunk, float]] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def kept(self) -> int:
        """How many bytes are kept."""
        return self._bytes

    def join(self, fd: int, kind: Hashable) -> SharedFile:
        """Return what the followers of the file open as `fd` share; `leave` it when done.

        `kind` tells apart followers that want the same bytes in different forms.
        """
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, kind)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = SharedFile(self, key)
        file.followers += 1
        return file

    def leave(self, file: SharedFile) -> None:
        """Give up one follower's share."""
        file.followers -= 1
        if not file.followers:
            del self._files[file.key]
        if file.followers <= 1:
            for entry in [entry for entry in self._kept if entry[0] is file]:
                self._drop(entry)

    def find(self, file: SharedFile, wanted: Hashable) -> Chunk | None:
        """Return what is kept of a file under the name `wanted`."""
        if (found := self._kept.get((file, wanted))) is None:
            return None
        self._kept[file, wanted] = found[0], time.monotonic()
        self._kept.move_to_end((file, wanted))
        return found[0]

    def keep(self, file: SharedFile, wanted: Hashable, chunk: Chunk) -> None:
        """Keep a chunk for the next who wants it."""
        if (file, wanted) in self._kept:
            self._drop((file, wanted))
        self._kept[file, wanted] = chunk, time.monotonic()
        self._bytes += len(chunk.data)
        while self._bytes > self._budget:
            self._drop(next(iter(self._kept)))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._hold, self._expire)

    def _expire(self) -> None:
        self._timer = None
        oldest = time.monotonic() - self._hold
        while self._kept:
            entry, (_, taken) = next(iter(self._kept.items()))
            if taken > oldest:
                self._timer = asyncio.get_running_loop().call_later(self._hold, self._expire)
                return
            self._drop(entry)

    def _drop(self, entry: tuple[SharedFile, Hashable]) -> None:
        chunk, _ = self._kept.pop(entry)
        self._bytes -= len(chunk.data)


class SharedFile:
    """What the followers of one file have in common: chunks, and reads that are under way."""

    def __init__(self, sharing: Sharing, key: Hashable) -> None:
        self.key: Final = key
        self.followers = 0
        self.reading: dict[Hashable, asyncio.Future[Chunk]] = {}
        """What a thread reads at this moment, by what is wanted."""
        self._sharing = sharing

    def find(self, wanted: Hashable) -> Chunk | None:
        """Return what is kept under the name `wanted`."""
        return self._sharing.find(self, wanted) if self.followers > 1 else None

    def keep(self, wanted: Hashable, chunk: Chunk) -> None:
        """Keep a chunk, if there is somebody else who may want it."""
        if self.followers > 1:
            self._sharing.keep(self, wanted, chunk)

    def leave(self) -> None:
        """Give up one follower's share."""
        self._sharing.leave(self)


sharing: Final = Sharing()
"""That of this process: it has one event loop that serves followers."""
