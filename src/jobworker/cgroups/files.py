"""The only opener of cgroup files.

Files are opened without O_CREAT, because a name that the kernel does not know must fail instead of
becoming a file of some other file system, and with O_NOFOLLOW, because no cgroup file is a link.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

GONE = (errno.ENOENT, errno.ENODEV)
"""What the kernel answers for a cgroup that was removed: by path, and through an open file."""

MAX_NESTED = 16384
"""How many nested cgroups `Files.walk` comes to at most: a job that runs as root can make any
number."""

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | _FLAGS
_CHUNK = 65536
_SHOWN_LEVELS = 3
_LINKS_OF_A_LEAF = 2
_DELEGATION_MARKS = ("trusted.delegate", "user.delegate")


class Nested:
    """A cgroup that a walk has come to; of use until the walk goes on.

    `read`, `write` and `remove` raise as those of `Files` do.
    """

    __slots__ = ("_fd", "_names", "_parent", "_top")

    def __init__(self, top: str, names: list[str], fd: int, parent: int | None) -> None:
        self._top = top
        self._names = names
        self._fd = fd
        self._parent = parent

    @property
    def path(self) -> str:
        """The path, for people to read: what lies deep is abridged."""
        return abridged(self._top, self._names)

    def read(self, file: str) -> str:
        """Return the whole content of one of its files."""
        path = f"{self.path}/{file}"
        try:
            fd = os.open(file, os.O_RDONLY | _FLAGS, dir_fd=self._fd)
        except OSError as error:
            _fail(error, "cannot open", path)
        try:
            return _read_all(fd, path)
        finally:
            os.close(fd)

    def write(self, file: str, text: str) -> None:
        """Hand the kernel `text` for one of its files as one request."""
        try:
            fd = os.open(file, os.O_WRONLY | _FLAGS, dir_fd=self._fd)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            _fail(error, f"cannot write {text!r}", f"{self.path}/{file}")

    def children(self) -> list[str]:
        """Return the names of the cgroups directly below it."""
        return [name for name, _ in _children(self._fd, MAX_NESTED)]

    def remove(self) -> None:
        """Remove it, if it holds neither processes nor other cgroups, else EBUSY."""
        try:
            if self._parent is None:
                os.rmdir(self._top)  # noqa: PTH106 - the shim has no pathlib
            else:
                os.rmdir(self._names[-1], dir_fd=self._parent)
        except OSError as error:
            _fail(error, "cannot remove", self.path)


class Files:
    """The kernel's cgroup files, by absolute path.

    Every method raises OSError that carries the path and, for a write, the text.
    """

    def read(self, path: str) -> str:
        """Return the whole content of a file."""
        fd = self.open(path)
        try:
            return _read_all(fd, path)
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
        return _read_all(fd, f"fd {fd}")

    def open_directory(self, path: str) -> int:
        """Open a cgroup's directory; the caller owns the descriptor."""
        try:
            return os.open(path, _DIRECTORY)
        except OSError as error:
            _fail(error, "cannot open", path)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or directory."""
        return os.path.exists(path)  # noqa: PTH110 - the shim does without pathlib

    def is_delegated(self, path: str) -> bool:
        """Tell whether a service manager has marked a cgroup as left to those who run in it.

        systemd marks the cgroups of units with Delegate= so, for all to read since version 251, and
        before for those with CAP_SYS_ADMIN (xattr(7)). cgroup2 has user attributes since Linux 5.7.
        """
        for name in _DELEGATION_MARKS:
            try:
                if os.getxattr(path, name) == b"1":
                    return True
            except OSError:  # ENODATA, ENOTSUP, or not there.
                continue
        return False

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

    def walk(self, path: str) -> Iterator[Nested]:
        """Come to a cgroup and all that are nested in it, each after those below it.

        Goes from directory to directory, because the path of one that is nested deep may be longer
        than any system call takes (PATH_MAX). What is mounted over a cgroup is left alone. Beyond
        MAX_NESTED cgroups the rest is left out, and so is a cgroup that is removed meanwhile.
        """
        try:
            fd = os.open(path, _DIRECTORY)
        except OSError as error:
            if error.errno in GONE:
                return
            _fail(error, "cannot open", path)
        parent = None
        try:
            device = os.fstat(fd).st_dev
            names: list[str] = []
            left = [MAX_NESTED]
            pending = [_take_children(fd, left)]
            while True:
                if pending[-1]:
                    name, inode = pending[-1].pop()
                    below, is_leaf = _open_child(fd, name, device, inode)
                    if below is None:
                        continue
                    names.append(name)
                    parent, fd = fd, below
                    if not is_leaf:
                        os.close(parent)
                        parent = None
                        pending.append(_take_children(fd, left))
                        continue
                else:
                    pending.pop()
                    if names:
                        # Before the cgroup is given out, which may be removed then.
                        parent = os.open("..", _DIRECTORY, dir_fd=fd)
                yield Nested(path, names, fd, parent)
                if parent is None:
                    return
                os.close(fd)
                fd, parent = parent, None
                names.pop()
        finally:
            os.close(fd)
            if parent is not None:
                os.close(parent)


def abridged(top: str, names: list[str]) -> str:
    """Return the path of what is nested in `top`, without the middle of one that is long."""
    if len(names) > _SHOWN_LEVELS:
        names = [names[0], f"({len(names) - 2} more)", names[-1]]
    return "/".join((top, *names))


def _take_children(fd: int, left: list[int]) -> list[tuple[str, int]]:
    """Return name and inode of each cgroup in a directory, as many as may still be visited."""
    found = _children(fd, left[0])
    left[0] -= len(found)
    return found


def _children(fd: int, most: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if len(found) == most:
                    break
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.name, entry.inode()))
    except OSError as error:
        if error.errno not in GONE:
            raise
    return found


def _open_child(fd: int, name: str, device: int, inode: int) -> tuple[int | None, bool]:
    """Open a directory, if it is there and nothing is mounted on it; tell if none is in it.

    The inode that getdents(2) gives is that of the directory, and not of what is mounted on it.
    A directory of kernfs has a link for each directory in it, beside its name and its dot.
    """
    try:
        child = os.open(name, _DIRECTORY, dir_fd=fd)
    except OSError as error:
        if error.errno in GONE:
            return None, False
        raise
    status = os.fstat(child)
    if (status.st_dev, status.st_ino) == (device, inode):
        return child, status.st_nlink == _LINKS_OF_A_LEAF
    os.close(child)
    return None, False


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
