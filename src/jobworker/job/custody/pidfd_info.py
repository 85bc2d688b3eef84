"""How a process ended, asked of its pidfd: PIDFD_GET_INFO with PIDFD_INFO_EXIT, since Linux 6.15.

The kernel keeps the wait status of a reaped process for those who hold a pidfd of it that was
opened before, be they its parent or not (linux/pidfd.h; ioctl_pidfd(2), "PIDFD_GET_INFO").
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_INFO: Final = struct.Struct("=QQ11Ii")
"""``struct pidfd_info`` in its first version, 64 bytes: mask, cgroupid, ids, exit_code."""
_PIDFD_INFO_EXIT: Final = 1 << 3
_READ_WRITE: Final = 3
_MAGIC: Final = 0xFF
_NUMBER: Final = 11
_PIDFD_GET_INFO: Final = (_READ_WRITE << 30) | (_INFO.size << 16) | (_MAGIC << 8) | _NUMBER
"""_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info), as most machines encode it (asm-generic)."""


def wait_status(pidfd: int) -> int | None:
    """Return the wait status of a process that has been reaped, or None if the kernel has none.

    None of one that has not been reaped yet, too, and from kernels before 6.15.
    """
    buffer = bytearray(_INFO.size)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(buffer)
    return status if mask & _PIDFD_INFO_EXIT else None
