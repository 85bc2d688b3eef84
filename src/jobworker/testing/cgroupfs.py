"""A tree of cgroups in memory that behaves like the kernel's where jobworker can tell.

`mkdir` fills a cgroup with its files, `rmdir` takes them away and refuses a cgroup in use, unknown
names fail, writes are judged, processes move and end, and changes of cgroup.events wake poll(2).
`jobworker.testing.contract` holds the tree to what the real kernel does.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from jobworker.cgroups.service import Service
from jobworker.testing._cgroup_boundaries import TreeFiles, TreeMounts
from jobworker.testing._cgroup_nodes import Node, Watcher
from jobworker.testing.cgroup_files import (
    CONTROLLER_FILES,
    CORE_FILES,
    KNOWN_CONTROLLERS,
    NESTED_FILES,
    WRITE_ONLY,
    Host,
    integer,
    refuse,
    taken,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobworker.cgroups.devices import Devices
    from jobworker.cgroups.files import Files
    from jobworker.cgroups.mounts import Mounts

ALL_CONTROLLERS: Final = ("cpu", "memory", "io", "pids")
_PID_MAX = 4 * 1024 * 1024


@dataclass(frozen=True)
class _Failure:
    pattern: str
    number: int
    operation: str
    text: str


class FakeCgroupTree:
    """The kernel's side: one hierarchy, the directories to mount it at, and a fault to inject.

    `controllers` are those that the root offers, `bound_to_v1` maps others to the mount point of
    cgroup v1 that holds them, `mounted_at` is where cgroup2 is mounted from the start, and
    `without` names files that this kernel does not have. `has_cgroup2`, `may_mount` and `forbidden`
    (directories in which nothing may be created) can be set, and so can `delegated` (cgroups that a
    service manager has marked). This process is in the root until it is moved.
    """

    def __init__(
        self,
        controllers: tuple[str, ...] = ALL_CONTROLLERS,
        *,
        bound_to_v1: Mapping[str, str] | None = None,
        mounted_at: str = "",
        without: frozenset[str] = frozenset({"io.bfq.weight"}),
        host: Host | None = None,
    ) -> None:
        self.controllers = controllers
        self.bound_to_v1 = dict(bound_to_v1 or {})
        self.without = without
        self.host = host or Host()
        self.directories: dict[str, list[str]] = {"/": []}
        self.mount_points: list[str] = []
        self.mount_options = "rw,nsdelegate"
        self.has_cgroup2 = True
        self.may_mount = True
        self.forbidden: set[str] = set()
        self.delegated: set[str] = set()
        self.writes: list[tuple[str, str]] = []
        self._failures: list[_Failure] = []
        self._deaf: list[str] = []
        self._replies: list[tuple[str, Callable[[], str | None]]] = []
        self._open: dict[int, Watcher] = {}
        self._root = Node()
        self._fill(self._root)
        if mounted_at:
            self.directories[mounted_at] = []
            self.mount_points.append(mounted_at)
        self.files: Files = TreeFiles(self)
        self.mounts: Mounts = TreeMounts(self)

    def service(self, root: str = "/cgroup2", devices: Devices | None = None) -> Service:
        """Return a Service whose kernel is this tree."""
        return Service(Path(root), files=self.files, mounts=self.mounts, devices=devices)

    def fail(self, pattern: str, number: int, operation: str = "write", *, text: str = "*") -> None:
        """Make an operation on the paths that match fail with an errno.

        `operation` is one of write (of a matching `text`), read, mkdir, rmdir, mount and unmount.
        """
        self._failures.append(_Failure(pattern, number, operation, text))

    def ignore_writes(self, pattern: str) -> None:
        """Make writes to the files that match succeed and change nothing."""
        self._deaf.append(pattern)

    def answer(self, pattern: str, reply: Callable[[], str | None]) -> None:
        """Let `reply` say what the files that match contain; None leaves it to the tree."""
        self._replies.append((pattern, reply))

    def set(self, path: str, content: str) -> None:
        """Change what a file says, as the kernel's own accounting does."""
        node, file = self._file(path)
        node.contents[file] = content

    def exit(self, pid: int) -> None:
        """End a process."""
        for node in self._root.subtree():
            if pid in node.processes:
                node.processes.remove(pid)
                self._notify(node)

    def cgroups(self) -> list[str]:
        """Return the paths of all cgroups below the root, relative to it."""
        found: list[str] = []

        def walk(node: Node, path: str) -> None:
            for name, child in node.children.items():
                found.append(f"{path}{name}")
                walk(child, f"{path}{name}/")

        walk(self._root, "")
        return found

    # What the kernel does with each request; the paths are those of the processes.

    def read(self, path: str) -> str:
        """Let a process read a whole file."""
        self._check(path, "read")
        node, file = self._file(path)
        if file in WRITE_ONLY:
            refuse(errno.EINVAL, path)
        for pattern, reply in self._replies:
            if fnmatchcase(path, pattern) and (content := reply()) is not None:
                return content
        return self._content(node, file)

    def write(self, path: str, text: str) -> None:
        """Let a process write to a file."""
        node, file = self._file(path)
        self._check(path, "write", text)
        self.writes.append((path, text))
        if any(fnmatchcase(path, pattern) for pattern in self._deaf):
            return
        match file:
            case "cgroup.procs":
                self._move(node, integer(text))
            case "cgroup.subtree_control":
                self._control(node, text.split())
            case "cgroup.kill":
                self._kill(node, integer(text))
            case "cgroup.freeze":
                self._freeze(node, integer(text))
            case _:
                node.contents[file] = taken(file, text, node.contents, self.host)

    def mkdir(self, path: str) -> None:
        """Let a process create a cgroup."""
        self._check(path, "mkdir")
        parent, name = self._parent(path)
        if name in parent.children or name in parent.contents:
            refuse(errno.EEXIST, path)
        self.check_writable(str(PurePosixPath(path).parent))
        if not all(above.has_room(level) for level, above in enumerate(parent.ancestry())):
            refuse(errno.EAGAIN, path)
        node = Node(parent=parent)
        self._fill(node)
        parent.children[name] = node

    def rmdir(self, path: str) -> None:
        """Let a process remove a cgroup."""
        self._check(path, "rmdir")
        node = self._node(path)
        if node is None or node.parent is None:
            refuse(errno.ENOENT if node is None else errno.EBUSY, path)
        if node.populated or node.children:
            refuse(errno.EBUSY, path)
        node.removed = True
        del node.parent.children[PurePosixPath(path).name]

    def names(self, path: str) -> list[str]:
        """Let a process list the cgroups in a cgroup."""
        node = self._node(path)
        if node is None:
            refuse(errno.ENOENT, path)
        return list(node.children)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or cgroup."""
        if self._node(path) is not None:
            return True
        try:
            self._file(path)
        except OSError:
            return False
        return True

    def open(self, path: str) -> int:
        """Let a process open a file; the descriptor can be polled."""
        node, file = self._file(path)
        watcher = Watcher(node, file)
        node.watchers.append(watcher)
        self._open[watcher.fd] = watcher
        return watcher.fd

    def read_open(self, fd: int) -> str:
        """Let a process read an open file from its start, which takes the wake-up away."""
        watcher = self._open[fd]
        watcher.read()
        if watcher.node.removed:
            refuse(errno.ENODEV)
        return self._content(watcher.node, watcher.file)

    def cgroup_of(self, pid: int) -> str:
        """Return the path of a process's cgroup, as /proc/<pid>/cgroup names it."""

        def find(node: Node, path: str) -> str | None:
            if pid in node.processes:
                return path
            found = (find(child, f"{path}/{name}") for name, child in node.children.items())
            return next(filter(None, found), None)

        return find(self._root, "") or "/"

    def check_mount(self, path: str, operation: str) -> None:
        """Raise the fault that was injected into mount(2) or umount2(2), if any."""
        self._check(path, operation)

    def check_writable(self, path: str) -> None:
        """Refuse a process that may not create anything in a directory or cgroup."""
        if path in self.forbidden:
            refuse(errno.EACCES, path)

    def is_mounted(self, path: str) -> bool:
        """Tell whether a path is a directory of the hierarchy."""
        return self._node(path) is not None

    def _check(self, path: str, operation: str, text: str = "") -> None:
        for failure in self._failures:
            if (
                failure.operation == operation
                and fnmatchcase(path, failure.pattern)
                and fnmatchcase(text, failure.text)
            ):
                refuse(failure.number, path)

    def _node(self, path: str) -> Node | None:
        for point in self.mount_points:
            if path == point or path.startswith(f"{point}/"):
                node: Node | None = self._root
                for name in PurePosixPath(path).relative_to(point).parts:
                    node = node.children.get(name) if node else None
                return node
        return None

    def _parent(self, path: str) -> tuple[Node, str]:
        pure = PurePosixPath(path)
        parent = self._node(str(pure.parent))
        if parent is None:
            refuse(errno.ENOENT, path)
        return parent, pure.name

    def _file(self, path: str) -> tuple[Node, str]:
        node, file = self._parent(path)
        if file not in node.contents:
            refuse(errno.ENOENT, path)
        return node, file

    def _content(self, node: Node, file: str) -> str:
        match file:
            case "cgroup.procs":
                return "".join(f"{pid}\n" for pid in node.processes)
            case "cgroup.controllers":
                return " ".join(self._offered(node)) + "\n"
            case "cgroup.subtree_control":
                return " ".join(node.enabled) + "\n"
            case "cgroup.events":
                return node.events
            case "cgroup.freeze":
                return f"{node.frozen:d}\n"
            case _:
                return node.contents[file]

    def _offered(self, node: Node) -> list[str]:
        return list(self.controllers) if node.parent is None else node.parent.enabled

    def _fill(self, node: Node) -> None:
        """Give a cgroup the files it should have, and take away those it should not."""
        files = dict(CORE_FILES)
        if node.parent is not None:
            files |= NESTED_FILES
            for name in node.parent.enabled:
                files |= CONTROLLER_FILES.get(name, {})
        node.contents = {
            name: node.contents.get(name, content)
            for name, content in files.items()
            if name not in self.without
        }

    def _move(self, node: Node, pid: int) -> None:
        if not 0 <= pid <= _PID_MAX:
            refuse(errno.ESRCH)
        if node.parent is not None and node.enabled:
            refuse(errno.EBUSY)
        self.exit(pid)
        node.processes.append(pid)
        self._notify(node)

    def _control(self, node: Node, requests: list[str]) -> None:
        """Take a write to cgroup.subtree_control, all or nothing."""
        enabled = list(node.enabled)
        for sign, name in ((request[:1], request[1:]) for request in requests):
            if sign not in ("+", "-") or name not in KNOWN_CONTROLLERS:
                refuse(errno.EINVAL)
            if sign == "+":
                if name not in self._offered(node):
                    refuse(errno.ENOENT)
                if node.parent is not None and node.processes:
                    refuse(errno.EBUSY)
                if name not in enabled:
                    enabled.append(name)
            elif name in enabled:
                if any(name in child.enabled for child in node.children.values()):
                    refuse(errno.EBUSY)
                enabled.remove(name)
        node.enabled = enabled
        for child in node.children.values():
            self._fill(child)

    def _kill(self, node: Node, number: int) -> None:
        if number != 1:
            refuse(errno.ERANGE)
        for member in list(node.subtree()):
            for pid in list(member.processes):
                self.exit(pid)

    def _freeze(self, node: Node, number: int) -> None:
        if number not in (0, 1):
            refuse(errno.ERANGE)
        node.frozen = bool(number)
        self._notify(node)

    @staticmethod
    def _notify(node: Node) -> None:
        for ancestor in node.ancestry():
            ancestor.watchers = [watcher for watcher in ancestor.watchers if watcher.wake()]
