"""The only opener of cgroup files.

Files are opened without O_CREAT, because a name that the kernel does not know must fail instead of
becoming a file of some other file system, and with O_NOFOLLOW, because no cgroup file is a link.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

GONE = (errno.ENOENT, errno.ENODEV)
"""What the kernel answers for a cgroup that was removed: by path, and through an open file."""

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 65536


class Files:
    """The kernel's cgroup files, by absolute path.

    Every method raises OSError that carries the path and, for a write, the text.
    """

    def read(self, path: str) -> str:
        """Return the whole content of a file."""
        fd = self.open(path)
        try:
            return self._read_all(fd, path)
        finally:
            os.close(fd)

    def write(self, path: str, text: str) -> None:
        """Hand the kernel `text` as one request, in a single system call."""
        try:
            fd = os.open(path, os.O_WRONLY | _FLAGS)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            _fail(error, f"cannot write {text!r}", path)

    def open(self, path: str) -> int:
        """Open a file for reading, or for poll(2); the caller owns the descriptor."""
        try:
            return os.open(path, os.O_RDONLY | _FLAGS)
        except OSError as error:
            _fail(error, "cannot open", path)

    def read_again(self, fd: int) -> str:
        """Return the present content of an open file.

        This also arms poll(2) again: it reports EPOLLPRI from the first change after the last read
        (and at once on a descriptor that was never read).
        """
        os.lseek(fd, 0, os.SEEK_SET)
        return self._read_all(fd, f"fd {fd}")

    def open_directory(self, path: str) -> int:
        """Open a cgroup's directory; the caller owns the descriptor."""
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        except OSError as error:
            _fail(error, "cannot open", path)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or directory."""
        return os.access(path, os.F_OK)

    def check_writable(self, path: str) -> None:
        """Raise what creating a cgroup in a cgroup would raise, as far as can be told before."""
        check_writable(path)

    def children(self, path: str) -> list[str]:
        """Return the names of the cgroups directly below a cgroup."""
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def make_cgroup(self, path: str) -> None:
        """Create a cgroup."""
        os.mkdir(path, 0o755)  # noqa: PTH102 - the shim has no pathlib

    def remove_cgroup(self, path: str) -> None:
        """Remove a cgroup that holds neither processes nor other cgroups, else EBUSY."""
        os.rmdir(path)  # noqa: PTH106 - the shim has no pathlib

    @staticmethod
    def _read_all(fd: int, path: str) -> str:
        chunks = []
        try:
            while chunk := os.read(fd, _CHUNK):
                chunks.append(chunk)
        except OSError as error:
            _fail(error, "cannot read", path)
        return b"".join(chunks).decode()


def check_writable(directory: str) -> None:
    """Raise OSError if this process may not create anything in a directory."""
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), directory)


def _fail(error: OSError, what: str, path: str) -> NoReturn:
    """Raise the same error (and the same subclass of OSError) with what was tried, and on what."""
    raise OSError(error.errno, f"{what}: {error.strerror}", path) from error
