"""The notes that a keeper leaves of processes which ended after their shim: a small file each.

They lie in ``<run dir>/reaped``, where only root (the server's user) can write, and are named after
the process: a pid and a start time are never the same twice in one boot of the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobworker.shim import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY: Final = "reaped"
_MAX_SIZE: Final = 64 * 1024
TEMPORARY: Final = ".new"


class EndNote(NamedTuple):
    """How a process ended.

    Exactly one of `exit_code` and `signal` is set. `executed` says whether it had executed a
    program since it was forked; `cgroup` is its path in the cgroup2 hierarchy. `start_time` is in
    clock ticks since boot; `ended_at` is seconds since the epoch, `ended_boot` seconds on
    CLOCK_BOOTTIME.
    """

    boot_id: str
    pid: int
    start_time: int
    ended_at: float
    ended_boot: float
    exit_code: int | None = None
    signal: int | None = None
    core_dumped: bool = False
    executed: bool = True
    cgroup: str = ""
    version: int = wire.VERSION

    @property
    def name(self) -> str:
        """The note's file name."""
        return note_name(self.pid, self.start_time)

    def is_of(self, job_id: str) -> bool:
        """Whether the process was in the cgroup of a job, or in one nested in it."""
        return job_id in self.cgroup.split("/")

    @classmethod
    def from_json(cls, data: object) -> EndNote:
        """Read a note, ignoring unknown keys. Raises ValueError if it cannot be one."""
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004
        known = {name: data[name] for name in cls._fields if name in data}
        for name, kind in _KINDS.items():
            if name in known and not isinstance(known[name], kind):
                raise ValueError(f"{name} cannot be {known[name]!r:.40}")
        try:
            note = cls(**known)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if (note.exit_code is None) == (note.signal is None):
            raise ValueError("exactly one of exit_code and signal must be set")
        wire.check_seconds(note.ended_at)
        wire.check_seconds(note.ended_boot)
        if note.signal is not None:
            wire.check_signal(note.signal)
        if note.exit_code is not None and not 0 <= note.exit_code <= 255:
            raise ValueError("exit_code must be from 0 to 255")
        return note

    def to_json(self) -> dict[str, Any]:
        """Return the note as a JSON object."""
        return self._asdict()


_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "version": (int,),
    "boot_id": (str,),
    "pid": (int,),
    "start_time": (int,),
    "exit_code": (int, type(None)),
    "signal": (int, type(None)),
    "core_dumped": (bool,),
    "executed": (bool,),
    "cgroup": (str,),
    "ended_at": (int, float),
    "ended_boot": (int, float),
}


def note_name(pid: int, start_time: int) -> str:
    """Return the file name of a process's note."""
    return f"{pid}.{start_time}.json"


def write_note(run_dir: str, note: EndNote) -> None:
    """Leave a note, at once or not at all. Raises OSError, and leaves nothing behind."""
    directory = os.path.join(run_dir, DIRECTORY)  # noqa: PTH118 - no pathlib in the shim
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)  # noqa: PTH102 - as above
    temporary = os.path.join(directory, note.name + TEMPORARY)  # noqa: PTH118 - as above
    body = wire.encode(note.to_json())[wire.HEADER_SIZE :] + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            if os.write(fd, body) != len(body):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(temporary, os.path.join(directory, note.name))  # noqa: PTH104, PTH118 - as above
    except OSError:
        os.unlink(temporary)  # noqa: PTH108 - as above
        raise


def read_note(run_dir: str, name: str) -> EndNote | None:
    """Return a note by its file name, or None if there is none.

    Raises ValueError if the file is no note, OSError if it cannot be read.
    """
    path = os.path.join(run_dir, DIRECTORY, name)  # noqa: PTH118 - as above
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return None
    try:
        body = os.read(fd, _MAX_SIZE)
    finally:
        os.close(fd)
    note = EndNote.from_json(wire.decode(body))
    if note.name != name:
        raise ValueError(f"the note of process {note.pid} under another's name")
    return note


def note_names(run_dir: str) -> Iterator[str]:
    """Yield the names of all files where notes lie, whatever they are."""
    try:
        yield from os.listdir(os.path.join(run_dir, DIRECTORY))  # noqa: PTH118, PTH208 - as above
    except (FileNotFoundError, NotADirectoryError):
        return


def remove_note(run_dir: str, name: str) -> None:
    """Remove a note, or a file in the place of one; one that is gone is fine. Raises OSError."""
    try:
        os.unlink(os.path.join(run_dir, DIRECTORY, name))  # noqa: PTH108, PTH118 - as above
    except FileNotFoundError:
        return
