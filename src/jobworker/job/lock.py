"""One server for each directory: an advisory lock that the kernel gives up when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Self

from jobworker.errors import AlreadyLocked, ConfigError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class DirectoryLock:
    """The exclusive use of a directory, from ``acquire`` to ``release`` (flock(2))."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, directory: Path) -> Self:
        """Create `directory` (0700) if need be and lock it.

        Raises AlreadyLocked if another server has it, ConfigError if it cannot be used.
        """
        path = directory / "server.lock"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot use the directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyLocked(
                f"another jobworker server (pid {holder}) uses {directory}; stop it, or give this "
                "one directories of its own (--run-dir, --state-dir)"
            ) from None
        # Only for the message above: a full disk does not matter.
        with contextlib.suppress(OSError):
            os.truncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd)

    def release(self) -> None:
        """Let others have the directory."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
