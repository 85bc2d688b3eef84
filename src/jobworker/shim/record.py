"""The file exit.json in a job's log directory: written by the shim, read by servers."""

from __future__ import annotations

import os
from typing import Final

from jobworker.errors import JobWorkerError
from jobworker.shim import wire
from jobworker.shim.wire import ExitRecord

_TEMPORARY_NAME: Final = f".{wire.EXIT_RECORD_NAME}.new"
_MAX_SIZE: Final = 1024 * 1024


class ExitRecordCorrupt(JobWorkerError):
    """Raised when exit.json is there but is not an exit record of this version."""


def write_exit_record(job_dir: int, record: ExitRecord) -> None:
    """Put `record` into the directory `job_dir` (a descriptor), at once or not at all.

    It outlives every process, but is not forced to the disk: a job does not outlive the host, and
    its end is in the server's registry soon after. Raises OSError, and leaves nothing behind.
    """
    body = wire.encode(record.to_json())[wire.HEADER_SIZE :] + b"\n"
    _unlink(job_dir, _TEMPORARY_NAME)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_TEMPORARY_NAME, flags, 0o600, dir_fd=job_dir)
    try:
        try:
            _write_all(fd, body)
        finally:
            os.close(fd)
        os.rename(_TEMPORARY_NAME, wire.EXIT_RECORD_NAME, src_dir_fd=job_dir, dst_dir_fd=job_dir)
    except OSError:
        _unlink(job_dir, _TEMPORARY_NAME)
        raise


def read_exit_record(job_dir: int | str | os.PathLike[str]) -> ExitRecord | None:
    """Return the exit record in a job's log directory (a path or a descriptor), None without one.

    Raises ExitRecordCorrupt, or OSError if the file cannot be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if isinstance(job_dir, int):
            fd = os.open(wire.EXIT_RECORD_NAME, flags, dir_fd=job_dir)
        else:
            fd = os.open(os.path.join(job_dir, wire.EXIT_RECORD_NAME), flags)  # noqa: PTH118 - no pathlib in the shim
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        body = file.read(_MAX_SIZE)
    try:
        return ExitRecord.from_json(wire.decode(body))
    except ValueError as error:
        where = job_dir if not isinstance(job_dir, int) else "the job's log directory"
        raise ExitRecordCorrupt(
            f"cannot tell how the job ended: {wire.EXIT_RECORD_NAME} in {where} is no exit record "
            f"({error})"
        ) from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
