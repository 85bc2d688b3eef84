"""The kernel's inotify(7), as far as watching single files needs it: the only module that calls it.

The interface gives whole batches of events, so that its user decides when to read the next. The
asyncinotify package hands out one event at a time and reads again as soon as it can; with a job
that writes without pause that is a loop that never sleeps (measured: 98 % of a core, against 3 %
when there are two milliseconds between reads).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

OVERFLOW: Final = -1
"""What stands for a watch in a batch when the kernel has dropped events (IN_Q_OVERFLOW)."""

_IN_MODIFY: Final = 0x2
# struct inotify_event: wd, mask, cookie, len. A name of len bytes follows only for watches on
# directories.
_EVENT: Final = struct.Struct("iIII")
_BATCH_SIZE: Final = 4096 * _EVENT.size

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One inotify instance, non-blocking, for IN_MODIFY on regular files.

    Raises OSError where the kernel refuses: EMFILE for too many descriptors or instances
    (fs.inotify.max_user_instances), ENOSPC for too many watches (fs.inotify.max_user_watches).
    """

    def __init__(self) -> None:
        self.fd: Final = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, fd: int) -> int:
        """Watch the file that is open as `fd`, whatever its name is now; return the watch."""
        # The path goes through the descriptor (proc_pid_fd(5)): it cannot lead to another file.
        path = f"/proc/self/fd/{fd}".encode()
        return _checked(_libc.inotify_add_watch(self.fd, path, _IN_MODIFY))

    def remove(self, watch: int) -> None:
        """Stop watching. Events of this watch may still be queued; its number is not used again."""
        _checked(_libc.inotify_rm_watch(self.fd, watch))

    def read(self) -> list[int]:
        """Return the watches of one batch of queued events, oldest first; empty if there are none.

        The kernel merges an event with the one before it if they are the same.
        """
        try:
            batch = os.read(self.fd, _BATCH_SIZE)
        except BlockingIOError:
            return []
        return [watch for watch, _mask, _cookie, _length in _EVENT.iter_unpack(batch)]

    def close(self) -> None:
        """Close the instance, and with it every watch."""
        os.close(self.fd)


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
