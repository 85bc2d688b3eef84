"""Servers that are started inside a cgroup, as systemd starts those of units with Delegate=."""

from __future__ import annotations

import os
import pwd
import shutil
from typing import TYPE_CHECKING

from tests.support.server import Server

if TYPE_CHECKING:
    from pathlib import Path

ENTER = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
"""The beginning of a command line: a cgroup and a command follow, which is executed in it."""

_OWNED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
"""What a unit's user gets, besides the directory (cgroup-v2.rst, "Model of Delegation")."""


def mark(cgroup: Path, name: str = "user.delegate") -> None:
    """Mark a cgroup as systemd marks one that it delegates."""
    os.setxattr(cgroup, name, b"1")


def delegate_to_nobody(cgroup: Path) -> None:
    """Give a cgroup to the user nobody, and nothing of what is above it."""
    for path in (cgroup, *(cgroup / name for name in _OWNED)):
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)


class DelegatedServer(Server):
    """A server that is started in the cgroup `start_in`, as root or as the user nobody.

    `root` is what it is told of the root: a path, "own", or nothing. As nobody it may read and
    look into everything, because the interpreter may lie where only root can; it may write to no
    more than nobody.
    """

    def __init__(
        self,
        directory: Path,
        certs: Path,
        cgroup_root: Path,
        *options: str,
        root: str = "",
        as_nobody: bool = False,
    ) -> None:
        self.start_in = cgroup_root
        self._root = root
        self._as_nobody = as_nobody
        if as_nobody:
            own = directory / "certs"
            certs = shutil.copytree(certs, own)
            for path in (directory, own, *own.iterdir()):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        super().__init__(directory, certs, cgroup_root, *options)

    def command(self) -> list[str]:
        """Return the command line of this server."""
        command = super().command()
        where = command.index("--cgroup-root")
        command[where : where + 2] = ["--cgroup-root", self._root] if self._root else []
        return [*ENTER, str(self.start_in), *(self._nobody() if self._as_nobody else []), *command]

    @staticmethod
    def _nobody() -> list[str]:
        nobody = pwd.getpwnam("nobody")
        return [
            "setpriv",
            f"--reuid={nobody.pw_uid}",
            f"--regid={nobody.pw_gid}",
            "--clear-groups",
            "--bounding-set=-all,+dac_read_search",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search",
        ]
