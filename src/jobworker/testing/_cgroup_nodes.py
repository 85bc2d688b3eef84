"""The cgroups that the tree in memory is made of, and open files of them that wake poll(2)."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(eq=False)
class Node:
    """One cgroup."""

    parent: Node | None = None
    children: dict[str, Node] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    enabled: list[str] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    frozen: bool = False
    removed: bool = False

    def subtree(self) -> Iterator[Node]:
        yield self
        for child in self.children.values():
            yield from child.subtree()

    def ancestry(self) -> Iterator[Node]:
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def has_room(self, level: int) -> bool:
        """Tell whether one more may be nested in it, below a cgroup `level` levels down."""
        nested = len(list(self.subtree())) - 1
        bounds = {"cgroup.max.depth": level, "cgroup.max.descendants": nested}
        texts = ((self.contents.get(file, "max"), used) for file, used in bounds.items())
        return all(text.strip() == "max" or used < int(text) for text, used in texts)

    @property
    def populated(self) -> bool:
        return any(node.processes for node in self.subtree())

    @property
    def events(self) -> str:
        return f"populated {self.populated:d}\nfrozen {self.frozen:d}\n"


class Watcher:
    """An open file of a cgroup: a socket, because out-of-band data makes it report EPOLLPRI."""

    def __init__(self, node: Node, file: str) -> None:
        self.node = node
        self.file = file
        near, far = socket.socketpair()
        self.fd = near.detach()
        self._far_fd = far.detach()
        weakref.finalize(self, os.close, self._far_fd)
        self.wake()

    def wake(self) -> bool:
        """Wake a poll(2); False if the file was closed meanwhile."""
        with socket.socket(fileno=os.dup(self._far_fd)) as far:
            try:
                far.send(b"!", socket.MSG_OOB | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False
        return True

    def read(self) -> None:
        """Take the wake-up away, if there is one."""
        with socket.socket(fileno=os.dup(self.fd)) as near, contextlib.suppress(OSError):
            near.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)
