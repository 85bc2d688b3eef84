"""Where cgroup2 and the controllers of cgroup v1 are mounted; mounts and unmounts cgroup2.

The parsers are pure; the class `Mounts` is the only caller of mount(2) and umount2(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobworker.cgroups.files import check_writable

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8  # mount(2)
_UMOUNT_NOFOLLOW = 8  # umount2(2)
_CAP_SYS_ADMIN: Final = 21  # capabilities(7)

_CGROUP2_OPTIONS: Final = frozenset(
    {
        "nsdelegate",
        "favordynmods",
        "memory_localevents",
        "memory_recursiveprot",
        "memory_hugetlb_accounting",
        "pids_localevents",
    }
)
"""The options of the file system cgroup2 itself (cgroup-v2.rst, "Mounting")."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo: `device` is MAJOR:MINOR, `options` are the file system's.

    `root` is the directory of the file system that is seen at `point`.
    """

    device: str
    point: str
    kind: str
    options: tuple[str, ...]
    root: str = "/"


@dataclass(frozen=True, slots=True)
class Subsystem:
    """A line of /proc/cgroups: a `hierarchy` other than 0 is one of cgroup v1."""

    hierarchy: int
    enabled: bool


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Read /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    mounts = []
    for line in text.split("\n"):  # Not splitlines: a name may hold what separates lines elsewhere.
        # A variable number of optional fields ends with a lone hyphen.
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 3:
            continue
        mounts.append(
            Mount(
                device=left[2],
                point=_unescape(left[4]),
                kind=right[0],
                options=tuple(right[2].split(",")),
                root=_unescape(left[3]),
            )
        )
    return tuple(mounts)


def parse_proc_cgroups(text: str) -> dict[str, Subsystem]:
    """Read /proc/cgroups (cgroups(7))."""
    rows = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {
        row[0]: Subsystem(hierarchy=int(row[1]), enabled=row[3] == "1")
        for row in rows
        if len(row) >= 4
    }


def parse_filesystems(text: str) -> frozenset[str]:
    """Read /proc/filesystems (proc_filesystems(5)): the file systems that the kernel has."""
    return frozenset(line.split()[-1] for line in text.splitlines() if line.strip())


def holds_capability(status: str, number: int) -> bool:
    """Tell from /proc/<pid>/status (proc_pid_status(5)) whether a capability is in effect."""
    for line in status.splitlines():
        name, _, mask = line.partition(":")
        if name == "CapEff":
            return bool(int(mask, 16) >> number & 1)
    return False


def cgroup2_options(mounts: tuple[Mount, ...]) -> str:
    """Return the options with which to mount cgroup2 once more.

    There is one cgroup2 file system, and each mount from the initial cgroup namespace sets its
    options anew for everybody (apply_cgroup_root_flags in kernel/cgroup/cgroup.c): a mount without
    options would take nsdelegate and memory_recursiveprot away from a running systemd. So those in
    force are repeated.
    """
    for mount in mounts:
        if mount.kind == "cgroup2":
            return ",".join(option for option in mount.options if option in _CGROUP2_OPTIONS)
    return ""


def read_names(path: str) -> str:
    """Return a text in which others have named things: that need not be UTF-8 (PEP 383)."""
    return os.fsdecode(Path(path).read_bytes())


class Mounts:
    """The mount table of this process, and the two calls that change it."""

    def table(self) -> tuple[Mount, ...]:
        """Return the mounts this process can see."""
        return parse_mountinfo(read_names("/proc/self/mountinfo"))

    def subsystems(self) -> dict[str, Subsystem]:
        """Return /proc/cgroups; empty where the kernel has none."""
        with contextlib.suppress(FileNotFoundError):
            return parse_proc_cgroups(Path("/proc/cgroups").read_text())
        return {}

    def own_cgroups(self) -> str:
        """Return /proc/self/cgroup: the cgroup of this process in each hierarchy (cgroups(7))."""
        with contextlib.suppress(FileNotFoundError):
            return read_names("/proc/self/cgroup")
        return ""

    def is_cgroup2(self, path: str) -> bool:
        """Tell whether a path is in a cgroup2 file system."""
        try:
            device = Path(path).stat().st_dev
        except (FileNotFoundError, NotADirectoryError):
            return False
        number = f"{os.major(device)}:{os.minor(device)}"
        return any(m.kind == "cgroup2" and m.device == number for m in self.table())

    def is_missing(self, path: str) -> bool:
        """Tell whether nothing is at a path."""
        return not os.path.lexists(path)

    def is_empty_directory(self, path: str) -> bool:
        """Tell whether a path is a directory with nothing in it."""
        try:
            with os.scandir(path) as entries:
                return next(entries, None) is None
        except (FileNotFoundError, NotADirectoryError):
            return False

    def has_cgroup2(self) -> bool:
        """Tell whether the kernel has the file system cgroup2."""
        return "cgroup2" in parse_filesystems(Path("/proc/filesystems").read_text())

    def may_mount(self) -> bool:
        """Tell whether this process has what mount(2) asks for: CAP_SYS_ADMIN."""
        return holds_capability(Path("/proc/self/status").read_text(), _CAP_SYS_ADMIN)

    def check_make_directory(self, path: str) -> None:
        """Raise the OSError that `make_directory` would raise, as far as can be told before."""
        parent = Path(path).parent
        if not stat.S_ISDIR(parent.stat().st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
        check_writable(str(parent))

    def make_directory(self, path: str) -> None:
        """Create a mount point. Raises OSError."""
        Path(path).mkdir(mode=0o755)

    def remove_directory(self, path: str) -> None:
        """Remove a mount point. Raises OSError."""
        Path(path).rmdir()

    def mount_cgroup2(self, path: str) -> None:
        """Mount cgroup2 at a directory, keeping the options in force. Raises OSError.

        Needs CAP_SYS_ADMIN.
        """
        options = cgroup2_options(self.table())
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        result = _libc().mount(
            b"cgroup2", os.fsencode(path), b"cgroup2", ctypes.c_ulong(flags), options.encode()
        )
        if result:
            raise _last_error(path)

    def unmount(self, path: str) -> None:
        """Unmount what is mounted at a directory. Raises OSError, with EBUSY if it is in use."""
        if _libc().umount2(os.fsencode(path), _UMOUNT_NOFOLLOW):
            raise _last_error(path)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _last_error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def _unescape(text: str) -> str:
    r"""Undo mountinfo's octal escapes of space, tab, newline and backslash (\040 …)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
