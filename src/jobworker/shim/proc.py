"""What /proc says of a process: who it is, whose child, and whether it ever executed a program."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

KEEPER_NAME: Final = "jobworker-keep"
SHIM_NAME: Final = "jobworker-shim"
TRIMMER_NAME: Final = "jobworker-trim"
"""A child of the shim that is no job's."""
"""What a keeper and a shim call themselves (/proc/<pid>/comm); 15 bytes at most."""

TICKS: Final = os.sysconf("SC_CLK_TCK")
"""Clock ticks in a second: the unit of start times."""

_EXITING: Final = 0x00000004
_FORKED_BUT_NOT_EXECUTED: Final = 0x00000040
"""PF_EXITING and PF_FORKNOEXEC of linux/sched.h; ps(1) shows the second as flag 1."""

_LONGEST_STAT: Final = 4096
"""Bytes; 52 numbers and a name of at most 64 bytes (proc(5)) are far less."""


class Stat(NamedTuple):
    """Some fields of /proc/<pid>/stat (proc(5)).

    `start_time` is in clock ticks since boot, on CLOCK_BOOTTIME. `wait_status` is what wait(2)
    would give of a process that has ended; it is 0 to whom the kernel does not tell it.
    """

    pid: int
    name: str
    state: str
    parent: int
    session: int
    flags: int
    start_time: int
    wait_status: int

    @property
    def ended(self) -> bool:
        """Whether the process has ended and has not been reaped."""
        return self.state in "ZX"

    @property
    def ending(self) -> bool:
        """Whether the process is on its way out, or has ended."""
        return self.ended or bool(self.flags & _EXITING)

    @property
    def executed(self) -> bool:
        """Whether the process has executed a program since it was forked; true of a zombie too."""
        return not self.flags & _FORKED_BUT_NOT_EXECUTED


def read_stat(pid: int) -> Stat | None:
    """Return what /proc says of a process, or None if there is none (any more)."""
    # Without a file object, which makes eight system calls instead of three: a thread that reads
    # all of /proc has to come by the interpreter again after each.
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, _LONGEST_STAT)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    # The name may hold spaces and parentheses; the last ")" ends it.
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    return Stat(
        pid=pid,
        name=head.partition(b"(")[2].decode(errors="replace"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        flags=int(fields[6]),
        start_time=int(fields[19]),
        wait_status=int(fields[49]),
    )


def read_cgroup(pid: int) -> str:
    """Return the cgroup2 path of a process, also of a zombie, or "" if it cannot be told.

    The kernel adds " (deleted)" to that of a cgroup which was removed (cgroup-v2.rst).
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - no pathlib in the shim
            lines = file.read().splitlines()
    except OSError:
        return ""
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    return path.removesuffix(" (deleted)")


def children(pid: int) -> list[int]:
    """Return the pids of this process's own children, those that have ended included.

    /proc/<pid>/task/<tid>/children needs CONFIG_PROC_CHILDREN; without it, all processes are looked
    at. `pid` must have one thread, and only it may reap them.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:  # noqa: PTH123 - as above
            return [int(each) for each in file.read().split()]
    except OSError:
        return [each.pid for each in processes() if each.parent == pid]


def processes() -> list[Stat]:
    """Return all processes that /proc shows us."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as above
    return [stat for pid in pids if (stat := _read_shown(pid)) is not None]


def _read_shown(pid: int) -> Stat | None:
    try:
        return read_stat(pid)
    except PermissionError:  # Those of others are listed all the same with hidepid=1 (proc(5)).
        return None
