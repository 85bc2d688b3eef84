"""Which bytes of an output with a cap are there: the newest. Pure: no I/O.

That is decided by arithmetic and not by asking where the hole in the file ends. What frees the head
(`holes.Capped`) frees none of the newest `cap` bytes that there are at that moment, and outputs
grow. So whatever lies within `cap` bytes of the end, *after* it was read, was read whole; what lies
before that may have been zeros already, and counts as dropped, be it still there or not. The answer
costs no lock, is the same on every file system, and does not depend on when the trimmer came by.
"""

from __future__ import annotations


def first_kept(size: int, cap: int | None) -> int:
    """Return the offset of the first byte kept of an output that is `size` bytes long.

    `cap` is how many bytes are kept, None for all.
    """
    return 0 if cap is None else max(0, size - cap)
