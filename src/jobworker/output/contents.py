"""What a job's directory holds: how much disk it takes, and whether all of it is ours to remove."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from jobworker.errors import FailedPrecondition
from jobworker.output.log import OUR_NAMES, as_text, open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK: Final = 512
"""What st_blocks counts in, whatever the file system's own blocks are (inode(7))."""
_NAMED: Final = 3


def disk_usage(log_dir: Path, job_id: str) -> int:
    """Return the bytes of disk that a job's directory and the files in it take; 0 if it is gone.

    That is what the file system has allocated: holes count nothing, a block that is half full
    counts as a whole one. What lies in further directories is not counted. Raises what
    `open_directory` raises, and OSError.
    """
    with _entries(log_dir, job_id) as (fd, entries):
        own = 0 if fd is None else os.fstat(fd).st_blocks
        return (own + sum(map(_blocks, entries))) * _BLOCK


def check_removable(log_dir: Path, job_id: str) -> None:
    """Raise FailedPrecondition if a job's directory holds what jobworker did not put there.

    A job that runs as root, or as the server's own user, can do that. Raises OSError, too, and what
    `open_directory` raises.
    """
    with _entries(log_dir, job_id) as (_fd, entries):
        foreign = [entry.name for entry in entries if _is_foreign(entry)]
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise FailedPrecondition(
            f"{log_dir / job_id} holds what jobworker did not put there "
            f"({', '.join(map(as_text, sorted(foreign)[:_NAMED]))}{more}); move that away"
        )


def _is_foreign(entry: os.DirEntry[str]) -> bool:
    return entry.name not in OUR_NAMES or entry.is_dir(follow_symlinks=False)


def _blocks(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks
    except FileNotFoundError:
        return 0


@contextmanager
def _entries(log_dir: Path, job_id: str) -> Iterator[tuple[int | None, Iterator[os.DirEntry[str]]]]:
    fd = open_directory(log_dir, job_id)
    if fd is None:
        yield None, iter(())
        return
    try:
        with os.scandir(fd) as entries:
            yield fd, entries
    finally:
        os.close(fd)
