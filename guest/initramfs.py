"""An initramfs as bytes, in the format "newc" of cpio(5). Pure."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

EXECUTABLE: Final = stat.S_IFREG | 0o755
PLAIN: Final = stat.S_IFREG | 0o644
DIRECTORY: Final = stat.S_IFDIR | 0o755


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or symbolic link; `path` is relative to the root, `mode` has the type.

    The content of a symbolic link is its target. `mtime` is in seconds.
    """

    path: str
    content: bytes = b""
    mode: int = PLAIN
    uid: int = 0
    gid: int = 0
    mtime: int = 0


def pack(entries: Iterable[Entry]) -> bytes:
    """Return an archive of `entries`, each after the directories that it is in."""
    parts, known = [], {PurePosixPath()}
    for entry in entries:
        path = PurePosixPath(entry.path)
        for parent in reversed(path.parents):
            if parent not in known:
                known.add(parent)
                parts.append(_packed(Entry(str(parent), mode=DIRECTORY)))
        known.add(path)
        parts.append(_packed(entry))
    return b"".join(parts) + _packed(Entry("TRAILER!!!", mode=0))


def _packed(entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    inode = device = check = 0
    links = 1
    fields = [inode, entry.mode, entry.uid, entry.gid, links, entry.mtime, len(entry.content)]
    fields += [*[device] * 4, len(name), check]
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
