"""Freeing the head of a file that others append to: fallocate(2), the only module that calls it.

What is freed reads as zeros and takes no space; the file's size, and with it every offset, stays.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02

_MIN_SLACK: Final = 64 * 1024
_MAX_SLACK: Final = 16 * 1024 * 1024

# Not PyDLL: while the kernel waits for whoever writes the file, other threads go on.
_libc: Final = ctypes.CDLL(None, use_errno=True)
# With 64-bit offsets everywhere; musl has them always and no other name.
_fallocate: Final = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int

UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS)
"""What the kernel says where the file system, or the kernel itself, knows no holes."""


def punch(fd: int, end: int) -> None:
    """Free the bytes before `end` of a file that is open for writing; blocks on its other writers.

    `end` must be a multiple of the file system's block size, or a part of a block is zeroed and
    not freed. Raises OSError, with one of UNSUPPORTED where there are no holes.
    """
    if _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 0, end) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def probe(fd: int) -> None:
    """Raise OSError if the head of this file could not be freed; an empty file stays as it is."""
    punch(fd, os.fstat(fd).st_blksize)


class Capped:
    """A file of which the newest `cap` bytes are kept, open for writing as `fd` (the caller's).

    To free little by little costs more than to let some more stay: `trim` does nothing until there
    are `slack` bytes to free.
    """

    def __init__(self, fd: int, cap: int) -> None:
        self._fd = fd
        self._cap = cap
        self.freed = 0
        """The offset up to which it is known to be free."""
        self.slack: Final = max(_MIN_SLACK, min(cap // 4, _MAX_SLACK))

    def trim(self, *, slack: int | None = None) -> int:
        """Free what the cap leaves no room for; return how many bytes have room until the next.

        Never frees one of the newest `cap` bytes there are when it is called. Raises OSError.
        """
        slack = self.slack if slack is None else slack
        status = os.fstat(self._fd)
        if status.st_size < self.freed:
            self.freed = 0  # whoever writes it has cut it off and begun again
        beyond = status.st_size - self._cap - self.freed
        if beyond > slack:
            end = (status.st_size - self._cap) // status.st_blksize * status.st_blksize
            if end > self.freed:
                punch(self._fd, end)
                self.freed = end
        return self.freed + self._cap + self.slack - status.st_size
