"""A job's place below the log directory: making, opening, measuring and removing its files.

Everything below the log directory is opened relative to a directory fd and without following
symbolic links, so that a name that somebody put there can never lead elsewhere.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from typing import TYPE_CHECKING, Final, Self

from jobworker import holes
from jobworker.errors import ConfigError, FailedPrecondition, JobWorkerError
from jobworker.exhaustion import exhausted
from jobworker.ids import parse_job_id
from jobworker.output.filesystem import file_system

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

OUTPUT_NAME: Final = "output"
STDERR_NAME: Final = "stderr"
OUR_NAMES: Final = (OUTPUT_NAME, STDERR_NAME, "exit.json", ".exit.json.new")
"""Every name that jobworker gives to a file in a job's directory: the output, standard error where
that is kept apart, the record of the job's end, and what that record is called until it is renamed
into place."""


class Stream(enum.Enum):
    """One of the streams that a job writes; the value is the name of its file."""

    STDOUT = OUTPUT_NAME
    """With standard error in it, unless that is kept apart."""
    STDERR = STDERR_NAME
    """Only where it is kept apart."""


_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK means nothing for a regular file; without it, opening a FIFO waits for a writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRIM: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)
"""What rmdir(2) says of a directory with something in it: POSIX allows either."""
_REMOVALS: Final = 10

_MEANINGS: Final = {errno.EMLINK: "the directory is full; remove finished jobs"}
_EXPLAINED: Final = {
    errno.ENOENT: "it does not exist",
    errno.EEXIST: "something else is in its place; give another name or move that away",
    errno.ENOTDIR: "it, or what leads to it, is a file or a symbolic link; give a directory",
    errno.ELOOP: "it is a symbolic link; give what it points to",
    errno.EACCES: "permission denied; run as root, or give a directory that this user may write to",
    errno.EROFS: "the file system is mounted read-only; give a directory that can be written to",
}


class Log:
    """The files of a job that is about to start; a context manager that closes both descriptors."""

    def __init__(self, dir_fd: int, fd: int, stderr_fd: int | None = None) -> None:
        self._dir_fd = dir_fd
        self._fd = fd
        self._stderr_fd = stderr_fd
        self._open = True

    @classmethod
    def create(
        cls, log_dir: Path, job_id: str, *, split_stderr: bool = False, capped: bool = False
    ) -> Self:
        """Make ``<log_dir>/<job_id>/`` (0700) and the empty file ``output`` (0600) in it.

        With `split_stderr` there is a file ``stderr`` too. `capped` outputs must be on a file
        system that can free the head of a file, or FailedPrecondition is raised.

        Raises InvalidArgument if the id is not a UUID, ConfigError if the log directory is
        unusable, ResourceExhausted if the host has run out of space or descriptors, and
        FailedPrecondition if the directory exists already. After an error nothing is left behind.
        """
        parse_job_id(job_id)
        with _log_directory(log_dir) as root, contextlib.ExitStack() as undo:
            try:
                os.mkdir(job_id, 0o700, dir_fd=root)
                undo.callback(os.rmdir, job_id, dir_fd=root)
                dir_fd = os.open(job_id, _DIRECTORY, dir_fd=root)
                undo.callback(os.close, dir_fd)
                fds = [_make(dir_fd, OUTPUT_NAME, undo)]
                if split_stderr:
                    fds.append(_make(dir_fd, STDERR_NAME, undo))
                if capped:
                    _check_cap(log_dir, fds[0])
            except FileExistsError as error:
                raise _failure(f"make {log_dir / job_id}", error, FailedPrecondition) from error
            except OSError as error:
                raise _failure(f"make {log_dir / job_id}", error, ConfigError) from error
            undo.pop_all()
        return cls(dir_fd, *fds)

    @property
    def fd(self) -> int:
        """The output, open for appending: what becomes the job's stdout and stderr."""
        return self._fd

    @property
    def stderr_fd(self) -> int | None:
        """The file of standard error alone, open for appending, if there is one."""
        return self._stderr_fd

    @property
    def dir_fd(self) -> int:
        """The job's directory, where the shim writes the record of the job's end."""
        return self._dir_fd

    def close(self) -> None:
        """Close all descriptors; the job and the shim have their own. Closing twice is fine."""
        if self._open:
            self._open = False
            os.close(self._fd)
            os.close(self._dir_fd)
            if self._stderr_fd is not None:
                os.close(self._stderr_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _make(directory: int, name: str, undo: contextlib.ExitStack) -> int:
    fd = os.open(name, _APPEND, 0o600, dir_fd=directory)
    undo.callback(os.unlink, name, dir_fd=directory)
    undo.callback(os.close, fd)
    return fd


def _check_cap(log_dir: Path, fd: int) -> None:
    try:
        holes.probe(fd)
    except OSError as error:
        if error.errno not in holes.UNSUPPORTED:
            raise
        raise FailedPrecondition(
            f"cannot keep the output below a cap in {log_dir}: the file system there "
            f"({file_system(log_dir)}) cannot free the head of a file; put the log directory on "
            "ext4, XFS, Btrfs or tmpfs, or start the job without a cap (--output-max max)"
        ) from error


def prepare(log_dir: Path) -> None:
    """Make the log directory (0700) if it is missing, and check that jobs can be put there.

    Raises ConfigError if it is a symbolic link or no directory, cannot be made or written to, or
    if everybody on the host may write to it, and so could put something in a job's place.
    """
    try:
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOENT:  # As in /proc, whose directories cannot be made.
            raise ConfigError(
                f"cannot make the log directory {log_dir}: its file system does not allow it; "
                "give a directory elsewhere"
            ) from error
        raise _failure(f"make the log directory {log_dir}", error, ConfigError) from error
    with _log_directory(log_dir) as root:
        if os.fstat(root).st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"cannot use the log directory {log_dir}: everybody may write to it; "
                f"give a directory of its own, or chmod o-w {log_dir}"
            )
    if not os.access(log_dir, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(f"cannot use the log directory {log_dir}: {_EXPLAINED[errno.EACCES]}")


def open_for_reading(log_dir: Path, job_id: str, stream: Stream = Stream.STDOUT) -> int:
    """Open one of a job's outputs for reading; the caller owns the fd.

    Raises InvalidArgument if the id is not a UUID, ConfigError if the log directory is unusable,
    ResourceExhausted if there is no descriptor left, and FailedPrecondition if the output is
    missing or is not a regular file.
    """
    return _open_output(log_dir, job_id, stream, _READ)


def open_for_trimming(log_dir: Path, job_id: str, stream: Stream = Stream.STDOUT) -> int:
    """Open one of a job's outputs so that its head can be freed; else like `open_for_reading`."""
    return _open_output(log_dir, job_id, stream, _TRIM)


def _open_output(log_dir: Path, job_id: str, stream: Stream, flags: int) -> int:
    with _job_directory(log_dir, job_id) as directory:
        fd = os.open(stream.value, flags, dir_fd=directory)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise FailedPrecondition(
            f"cannot read the output of job {job_id}: {log_dir / job_id / stream.value} was "
            "replaced by something that is not a regular file"
        )


def size(log_dir: Path, job_id: str, stream: Stream = Stream.STDOUT) -> int:
    """Return the size of a job's output in bytes. Raises what `open_for_reading` raises."""
    with _job_directory(log_dir, job_id) as directory:
        return os.stat(stream.value, dir_fd=directory, follow_symlinks=False).st_size


def open_directory(log_dir: Path, job_id: str) -> int | None:
    """Open a job's directory, where the record of its end is; None if there is none.

    The caller owns the fd. Raises InvalidArgument if the id is not a UUID, ConfigError if the log
    directory is unusable, ResourceExhausted if there is no descriptor left, and FailedPrecondition
    if something else is in the directory's place.
    """
    parse_job_id(job_id)
    with _log_directory(log_dir) as root:
        return _open_if_there(root, job_id, f"open {log_dir / job_id}")


def remove(log_dir: Path, job_id: str) -> None:
    """Remove a job's files and its directory; what is missing is fine, readers keep what is open.

    Only `OUR_NAMES` are removed, nothing is removed recursively. Raises InvalidArgument if the id
    is not a UUID, ConfigError if the log directory is unusable, and FailedPrecondition if the
    directory is not one, or holds something that jobworker did not put there, and so stays.
    """
    parse_job_id(job_id)
    path = log_dir / job_id
    with _log_directory(log_dir) as root:
        directory = _open_if_there(root, job_id, f"remove {path}")
        if directory is None:
            return
        try:
            _remove(root, job_id, directory)
        except OSError as error:
            if foreign := _foreign(directory, error):
                raise FailedPrecondition(
                    f"cannot remove {path}: it holds what jobworker did not put there "
                    f"({', '.join(map(as_text, sorted(foreign)))}); remove it by hand"
                ) from error
            raise _failure(f"remove {path}", error, FailedPrecondition) from error
        finally:
            os.close(directory)


def as_text(name: str) -> str:
    """Return a file's name so that it can be sent: on Linux it is bytes, and need not be UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _remove(root: int, job_id: str, directory: int) -> None:
    """Remove our files and the directory, again if the shim writes the job's end meanwhile."""
    for attempt in range(_REMOVALS):
        for name in OUR_NAMES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
        try:
            os.rmdir(job_id, dir_fd=root)
        except OSError as error:
            last = attempt == _REMOVALS - 1
            if last or error.errno not in _NOT_EMPTY or _foreign(directory, error):
                raise
        else:
            return


def _foreign(directory: int, error: OSError) -> list[str]:
    """Return the names in a directory that kept it from being removed and are not ours.

    Where a file could not be removed, something else has one of our names.
    """
    names = os.listdir(directory)
    return [name for name in names if error.errno not in _NOT_EMPTY or name not in OUR_NAMES]


@contextlib.contextmanager
def _log_directory(log_dir: Path) -> Iterator[int]:
    try:
        fd = os.open(log_dir, _DIRECTORY)
    except OSError as error:
        raise _failure(f"open the log directory {log_dir}", error, ConfigError) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _open_if_there(root: int, job_id: str, what: str) -> int | None:
    try:
        return os.open(job_id, _DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failure(what, error, FailedPrecondition) from error


@contextlib.contextmanager
def _job_directory(log_dir: Path, job_id: str) -> Iterator[int]:
    """Open a job's directory; what fails inside the block is a failure to read the output."""
    parse_job_id(job_id)
    with _log_directory(log_dir) as root, contextlib.ExitStack() as closing:
        try:
            fd = os.open(job_id, _DIRECTORY, dir_fd=root)
            closing.callback(os.close, fd)
            yield fd
        except OSError as error:
            what = f"read the output of job {job_id} in {log_dir / job_id}"
            raise _failure(what, error, FailedPrecondition) from error


def _failure(what: str, error: OSError, otherwise: type[JobWorkerError]) -> JobWorkerError:
    """Say why the host could not do `what`: ResourceExhausted where that is it, or `otherwise`."""
    problem = _EXPLAINED.get(error.errno or 0, error.strerror)
    return exhausted(what, error.errno, meanings=_MEANINGS) or otherwise(
        f"cannot {what}: {problem}"
    )
