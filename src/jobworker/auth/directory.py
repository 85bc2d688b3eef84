"""A directory of certificates and keys: locked, read as a whole, every file written in one step."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Directory:
    """An open directory; its methods raise OSError as the calls beneath them do."""

    fd: int

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: Path, *, create: bool) -> Iterator[Directory]:
        """Open a directory for one program at a time: two that write at once would mix their keys.

        `create` makes it, for its owner alone, if it is not there; what is there keeps its mode.
        """
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield cls(fd)
        finally:
            os.close(fd)

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read those of the files that exist."""
        contents = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
                with os.fdopen(fd, "rb") as file:
                    contents[name] = file.read()
        return contents

    def write(self, name: str, data: bytes, *, mode: int) -> None:
        """Put a file in place as a whole, or not at all; nobody ever sees it with another mode."""
        temporary = f".{name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self.fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(fd, mode)
                os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            os.unlink(temporary, dir_fd=self.fd)
            raise
        os.fsync(self.fd)
