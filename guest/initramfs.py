"""An initramfs as bytes, in the format "newc" of cpio(5). Pure."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class File:
    """A file of the initramfs; `path` is relative to its root."""

    path: str
    content: bytes
    executable: bool = False


def pack(files: Iterable[File]) -> bytes:
    """Return an archive of `files` and of the directories that they are in."""
    archive, directories = b"", set()
    for file in files:
        for parent in reversed(PurePosixPath(file.path).parents[:-1]):
            if parent not in directories:
                directories.add(parent)
                archive += _entry(str(parent), stat.S_IFDIR | 0o755)
        permissions = 0o755 if file.executable else 0o644
        archive += _entry(file.path, stat.S_IFREG | permissions, file.content)
    return archive + _entry("TRAILER!!!", 0)


def _entry(path: str, mode: int, content: bytes = b"") -> bytes:
    name = path.encode() + b"\0"
    inode = uid = gid = mtime = device = check = 0
    fields = [inode, mode, uid, gid, 1, mtime, len(content), *[device] * 4, len(name), check]
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
