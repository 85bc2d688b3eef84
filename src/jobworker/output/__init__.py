"""A job's output: an append-only file that the kernel writes and any number of readers follow."""

from jobworker.output.beginning import find_beginning
from jobworker.output.chunk import Chunk, Header, no_header
from jobworker.output.contents import check_removable, disk_usage
from jobworker.output.follow import Follower, follow, read_to
from jobworker.output.log import (
    Log,
    Stream,
    open_directory,
    open_for_reading,
    open_for_trimming,
    prepare,
    remove,
    size,
)
from jobworker.output.watch import Watch, Watcher

__all__ = [
    "Chunk",
    "Follower",
    "Header",
    "Log",
    "Stream",
    "Watch",
    "Watcher",
    "check_removable",
    "disk_usage",
    "find_beginning",
    "follow",
    "no_header",
    "open_directory",
    "open_for_reading",
    "open_for_trimming",
    "prepare",
    "read_to",
    "remove",
    "size",
]
