"""A directory on a file system of its own that has no room left."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def full_directory(path: Path) -> Iterator[Path]:
    """Mount a file system of one page, and fill it; yield the file that does."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", path], check=True)
    try:
        filler = path / "filler"
        filler.write_bytes(b"x" * 4096)
        yield filler
    finally:
        subprocess.run(["umount", "-l", path], check=True)
