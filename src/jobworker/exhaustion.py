"""What a host can run out of: the kernel's errno → what has run out, and the remedy."""

from __future__ import annotations

import errno
import os

from jobworker.errors import ResourceExhausted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

TABLE = {
    errno.EDQUOT: "the disk quota is used up; make room or raise it",
    errno.EMFILE: "this process has no file descriptor left; raise its limit (LimitNOFILE=)",
    errno.ENFILE: "the host has no file descriptor left; raise fs.file-max",
    errno.ENOMEM: "the kernel is out of memory",
    errno.ENOSPC: "the disk is full; make room",
}
"""What the numbers mean in general; some calls give one a meaning of their own."""


def exhausted(
    what: str, number: int | None, *, meanings: Mapping[int, str] | None = None
) -> ResourceExhausted | None:
    """Return the error "cannot `what`: …" if the errno `number` says that something has run out.

    `meanings` adds to TABLE, or replaces there, what a number means to the call that failed.
    """
    number = number or 0
    meaning = (meanings or {}).get(number) or TABLE.get(number)
    if meaning is None:
        return None
    return ResourceExhausted(f"cannot {what}: {meaning} ({os.strerror(number)})")
