"""The place of the root: finding cgroup2 there, mounting it if need be, and moving out of it."""

from __future__ import annotations

import enum
import errno
import os
from typing import TYPE_CHECKING

from jobworker.cgroups import delegation
from jobworker.errors import CgroupUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from jobworker.cgroups.files import Files
    from jobworker.cgroups.mounts import Mounts


class _Place(enum.Enum):
    """What is at the place where the jobs' cgroups are to be."""

    CGROUP = enum.auto()
    EMPTY = enum.auto()
    """An empty directory, to mount cgroup2 at."""
    MISSING = enum.auto()
    """Nothing: a directory to mount cgroup2 at has to be made."""


class RootDirectory:
    """A directory of a cgroup2 file system, or a place to mount one at.

    What it has mounted or made itself it takes away again, and nothing else.
    """

    def __init__(self, path: Path, files: Files, mounts: Mounts) -> None:
        self._path = path
        self._files = files
        self._mounts = mounts
        self._made = False
        self._mounted = False

    def prepare(self) -> None:
        """Mount cgroup2 unless it is there already. Raises CgroupUnavailable."""
        match self._place():
            case _Place.MISSING:
                self._make()
                self._mount()
            case _Place.EMPTY:
                self._mount()

    def check_prepare(self) -> str:
        """Return what `prepare` would do, in words, or nothing if cgroup2 is there; only looks.

        Raises CgroupUnavailable, with the same words as `prepare`, if it could not be done.
        """
        place = self._place()
        if place is _Place.CGROUP:
            return ""
        self._check_mount()
        if place is _Place.EMPTY:
            return f"cgroup2 will be mounted at {self._path}"
        try:
            self._mounts.check_make_directory(str(self._path))
        except OSError as error:
            raise _no_mount_point(str(self._path), error) from error
        return f"{self._path} will be created, and cgroup2 mounted there"

    def leave(self) -> None:
        """Move this process into a leaf if it is in the root itself. Raises CgroupUnavailable."""
        try:
            delegation.leave_root(str(self._path), self._files)
        except OSError as error:
            raise CgroupUnavailable(
                f"cannot move the server out of {self._path} into {delegation.LEAF} below it: "
                f"{problem(error)}; start it there, or give it a cgroup root that belongs to its "
                "user (--cgroup-root)"
            ) from error

    def foreseen_move(self) -> str:
        """Return what `leave` would do, as the end of a sentence; empty if nothing."""
        inner = self._inner_processes()
        if len(delegation.others(inner)) == len(inner):
            return ""
        return f"; the server will move from {self._path} to {delegation.LEAF} below it"

    def others(self) -> list[str]:
        """Return the processes that would be in the root itself after `leave`."""
        return delegation.others(self._inner_processes())

    def release(self) -> None:
        """Unmount what `prepare` mounted, unless somebody uses it. Raises OSError."""
        if not self._mounted:
            return
        try:
            self._mounts.unmount(str(self._path))
        except OSError as error:
            # Somebody has a file of it open, or works in it: then it is theirs to keep.
            if error.errno != errno.EBUSY:
                raise
            return
        self._mounted = False
        self._remove()

    def _place(self) -> _Place:
        """Return what is at the root. Raises CgroupUnavailable if it can never hold cgroups."""
        root = str(self._path)
        try:
            if self._mounts.is_cgroup2(root):
                return _Place.CGROUP
            if not self._mounts.is_missing(root):
                if self._mounts.is_empty_directory(root):
                    return _Place.EMPTY
                raise CgroupUnavailable(
                    f"cannot mount cgroup2 at {root}: it is not an empty directory; name another "
                    "one, or a directory of a cgroup2 that is mounted already (--cgroup-root)"
                )
            if not self._mounts.is_cgroup2(str(self._path.parent)):
                return _Place.MISSING
        except OSError as error:
            raise CgroupUnavailable(f"cannot look at {root}: {problem(error)}") from error
        raise CgroupUnavailable(
            f"there is no cgroup {root}; create it and enable controllers for it "
            f"({self._path.parent}/cgroup.subtree_control), or name one that is there"
        )

    def _check_mount(self) -> None:
        """Raise CgroupUnavailable if cgroup2 could not be mounted anywhere."""
        if not self._mounts.has_cgroup2():
            raise _not_mounted(str(self._path), errno.ENODEV)
        if not self._mounts.may_mount():
            raise _not_mounted(str(self._path), errno.EPERM)

    def _mount(self) -> None:
        root = str(self._path)
        try:
            self._mounts.mount_cgroup2(root)
        except OSError as error:
            self._remove()
            raise _not_mounted(root, error.errno or 0) from error
        self._mounted = True

    def _make(self) -> None:
        try:
            self._mounts.make_directory(str(self._path))
        except OSError as error:
            raise _no_mount_point(str(self._path), error) from error
        self._made = True

    def _remove(self) -> None:
        if self._made:
            self._mounts.remove_directory(str(self._path))
            self._made = False

    def _inner_processes(self) -> list[str]:
        try:
            return delegation.inner_processes(str(self._path), self._files)
        except OSError:
            return []  # It is `leave` that says why it cannot be used.


def problem(error: OSError) -> str:
    """Return the kernel's own words, without the file and text that `Files` adds."""
    return os.strerror(error.errno or 0)


def _no_mount_point(root: str, error: OSError) -> CgroupUnavailable:
    return CgroupUnavailable(f"cannot create {root} to mount cgroup2 at: {problem(error)}")


def _not_mounted(root: str, number: int) -> CgroupUnavailable:
    if number in (errno.EPERM, errno.EACCES):
        remedy = (
            "that needs CAP_SYS_ADMIN; run the server as root, mount it beforehand "
            f"(mount -t cgroup2 none {root}), or name a cgroup that belongs to the server's user "
            "(--cgroup-root)"
        )
    elif number == errno.ENODEV:
        remedy = "this kernel has no cgroup v2 (Linux 4.5 with CONFIG_CGROUPS)"
    else:
        remedy = os.strerror(number)
    return CgroupUnavailable(f"cannot mount cgroup2 at {root}: {remedy}")
