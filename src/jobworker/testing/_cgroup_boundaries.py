"""The boundaries to cgroup files and to the mount table, answered by a tree in memory."""

from __future__ import annotations

import errno
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from jobworker.cgroups.files import Files, Nested
from jobworker.cgroups.mounts import Mount, Mounts, Subsystem
from jobworker.testing.cgroup_files import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobworker.testing.cgroupfs import FakeCgroupTree

_V1_NAMES: Final = {"io": "blkio"}
_DEVICE = "0:99"


class TreeNested(Nested):
    """A cgroup of a tree that a walk has come to."""

    def __init__(self, tree: FakeCgroupTree, path: str) -> None:
        super().__init__(path, [], -1, None)
        self._tree = tree

    def read(self, file: str) -> str:
        return self._tree.files.read(f"{self.path}/{file}")

    def write(self, file: str, text: str) -> None:
        self._tree.files.write(f"{self.path}/{file}", text)

    def children(self) -> list[str]:
        return self._tree.names(self.path)

    def remove(self) -> None:
        self._tree.rmdir(self.path)


class TreeFiles(Files):
    """The boundary to cgroup files, answered by a tree."""

    def __init__(self, tree: FakeCgroupTree) -> None:
        self._tree = tree

    def read(self, path: str) -> str:
        try:
            return self._tree.read(path)
        except OSError as error:
            raise OSError(error.errno, f"cannot read: {error.strerror}", path) from error

    def write(self, path: str, text: str) -> None:
        try:
            self._tree.write(path, text)
        except OSError as error:
            problem = f"cannot write {text!r}: {error.strerror}"
            raise OSError(error.errno, problem, path) from error

    def open(self, path: str) -> int:
        return self._tree.open(path)

    def read_again(self, fd: int) -> str:
        return self._tree.read_open(fd)

    def open_directory(self, path: str) -> int:
        if not self._tree.is_mounted(path):
            refuse(errno.ENOENT, path)
        # Some directory: there is no cgroup to clone a process into.
        return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def exists(self, path: str) -> bool:
        return self._tree.exists(path)

    def is_delegated(self, path: str) -> bool:
        return path in self._tree.delegated

    def check_writable(self, path: str) -> None:
        self._tree.check_writable(path)

    def children(self, path: str) -> list[str]:
        return self._tree.names(path)

    def walk(self, path: str) -> Iterator[Nested]:
        if not self._tree.is_mounted(path):
            return
        for name in self._tree.names(path):
            yield from self.walk(f"{path}/{name}")
        yield TreeNested(self._tree, path)

    def make_cgroup(self, path: str) -> None:
        self._tree.mkdir(path)

    def remove_cgroup(self, path: str) -> None:
        self._tree.rmdir(path)


class TreeMounts(Mounts):
    """The boundary to the mount table, answered by a tree."""

    def __init__(self, tree: FakeCgroupTree) -> None:
        self._tree = tree

    def table(self) -> tuple[Mount, ...]:
        unified = (
            Mount(_DEVICE, point, "cgroup2", tuple(self._tree.mount_options.split(",")))
            for point in self._tree.mount_points
        )
        legacy = (
            Mount("0:31", point, "cgroup", ("rw", _V1_NAMES.get(name, name)))
            for name, point in self._tree.bound_to_v1.items()
        )
        return (*unified, *legacy)

    def subsystems(self) -> dict[str, Subsystem]:
        free = {
            _V1_NAMES.get(name, name): Subsystem(0, enabled=True) for name in self._tree.controllers
        }
        bound = {
            _V1_NAMES.get(name, name): Subsystem(number, enabled=True)
            for number, name in enumerate(self._tree.bound_to_v1, start=1)
        }
        return free | bound

    def own_cgroups(self) -> str:
        return f"0::{self._tree.cgroup_of(os.getpid())}\n"

    def is_cgroup2(self, path: str) -> bool:
        return self._tree.is_mounted(path)

    def is_missing(self, path: str) -> bool:
        return path not in self._tree.directories and not self._tree.is_mounted(path)

    def is_empty_directory(self, path: str) -> bool:
        return self._tree.directories.get(path) == []

    def has_cgroup2(self) -> bool:
        return self._tree.has_cgroup2

    def may_mount(self) -> bool:
        return self._tree.may_mount

    def check_make_directory(self, path: str) -> None:
        parent = str(PurePosixPath(path).parent)
        if parent not in self._tree.directories:
            refuse(errno.ENOENT, path)
        self._tree.check_writable(parent)

    def make_directory(self, path: str) -> None:
        self.check_make_directory(path)
        self._tree.directories[path] = []

    def remove_directory(self, path: str) -> None:
        del self._tree.directories[path]

    def mount_cgroup2(self, path: str) -> None:
        self._tree.check_mount(path, "mount")
        if not self._tree.has_cgroup2:
            refuse(errno.ENODEV, path)
        if not self._tree.may_mount:
            refuse(errno.EPERM, path)
        self._tree.mount_points.append(path)

    def unmount(self, path: str) -> None:
        self._tree.check_mount(path, "unmount")
        self._tree.mount_points.remove(path)
