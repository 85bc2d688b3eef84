"""The file exit.json in a job's log directory: written by the shim, read by servers."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from jobworker import steps
from jobworker.errors import JobWorkerError
from jobworker.shim import wire
from jobworker.shim.wire import ExitRecord

TEMPORARY_NAME: Final = f".{wire.EXIT_RECORD_NAME}.new"
_MAX_SIZE: Final = 1024 * 1024
_MAX_FOREIGN: Final = 99


class ExitRecordCorrupt(JobWorkerError):
    """Raised when exit.json is there but is not an exit record that can be understood."""


def write_exit_record(job_dir: int, record: ExitRecord) -> None:
    """Put `record` into the directory `job_dir` (a descriptor), at once or not at all.

    It outlives every process, but is not forced to the disk: a job does not outlive the host, and
    its end is in the server's registry soon after. A file that is in the way is replaced, and a
    directory put aside, as ``exit.json.foreign-<n>``. Raises OSError, and leaves nothing behind.
    """
    body = wire.encode(record.to_json())[wire.HEADER_SIZE :] + b"\n"
    _remove(job_dir, TEMPORARY_NAME)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(TEMPORARY_NAME, flags, 0o600, dir_fd=job_dir)
    try:
        try:
            _write_all(fd, body)
        finally:
            os.close(fd)
        steps.reached("shim.end.record_begun")
        try:
            _rename(job_dir, TEMPORARY_NAME, wire.EXIT_RECORD_NAME)
        except IsADirectoryError:
            _put_aside(job_dir, wire.EXIT_RECORD_NAME)
            _rename(job_dir, TEMPORARY_NAME, wire.EXIT_RECORD_NAME)
    except OSError:
        _remove(job_dir, TEMPORARY_NAME)
        raise


def read_exit_record(job_dir: int | str | os.PathLike[str]) -> ExitRecord | None:
    """Return the exit record in a job's log directory, or None without one.

    `job_dir` is a descriptor, or a path whose last part is not followed if it is a symbolic link.
    Raises ExitRecordCorrupt, or OSError if the directory or the file cannot be read. Whatever is
    in the place of exit.json, this does not wait for it.
    """
    if isinstance(job_dir, int):
        return _read(job_dir)
    try:
        directory = os.open(job_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _read(directory)
    finally:
        os.close(directory)


def _read(job_dir: int) -> ExitRecord | None:
    name = wire.EXIT_RECORD_NAME
    try:
        # Looked at before it is opened: to open a device can do something to it.
        if not stat.S_ISREG(os.stat(name, dir_fd=job_dir, follow_symlinks=False).st_mode):
            raise _corrupt("not a regular file")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=job_dir)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        body = file.read(_MAX_SIZE + 1)
    if len(body) > _MAX_SIZE:
        raise _corrupt(f"more than {_MAX_SIZE} bytes")
    try:
        return ExitRecord.from_json(wire.decode(body))
    except ValueError as error:
        raise _corrupt(str(error)) from error


def _corrupt(problem: str) -> ExitRecordCorrupt:
    return ExitRecordCorrupt(
        f"cannot tell how the job ended: {wire.EXIT_RECORD_NAME} in its log directory is no exit "
        f"record ({problem})"
    )


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _rename(directory: int, old: str, new: str) -> None:
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


def _remove(directory: int, name: str) -> None:
    """Remove a file, or put a directory aside."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        _put_aside(directory, name)


def _put_aside(directory: int, name: str) -> None:
    for number in range(1, _MAX_FOREIGN + 1):
        free = f"{wire.EXIT_RECORD_NAME}.foreign-{number}"
        try:
            os.stat(free, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            _rename(directory, name, free)
            return
    raise FileExistsError(errno.EEXIST, "too much has been put in the place of exit.json")
