"""The cgroup that a server was given to divide among its jobs, and its own place in it.

A service manager delegates a cgroup: what is below it is the server's, what is above stays the
manager's (cgroup-v2.rst, "Delegation"; systemd: Delegate=). The server may have been started in
that very cgroup. A cgroup that passes controllers on must hold no process itself (cgroup-v2.rst,
"No Internal Process Constraint"), so the server then moves into a leaf, a sibling of the jobs'.
The parsers are pure.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.cgroups.files import Files
from jobworker.cgroups.mounts import Mounts
from jobworker.errors import CgroupUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobworker.cgroups.mounts import Mount

OWN: Final = Path("own")
"""In the place of a root: the cgroup that the server was started in."""
LEAF: Final = "server"
"""The cgroup below the root for the server, and for the shim that it starts."""


@dataclass(frozen=True, slots=True)
class Root:
    """A root for a Service, and why it is this one, in words."""

    path: Path
    reason: str


def choose_root(
    given: Path | None,
    *,
    default: Path,
    files: Files | None = None,
    mounts: Mounts | None = None,
) -> Root:
    """Return the root to use: `given`, or the server's own cgroup if that was delegated to it.

    A server that was started in the leaf of a delegated cgroup (systemd: DelegateSubgroup=) belongs
    to that. Only looks. Raises CgroupUnavailable if `given` is OWN and that is nowhere to be seen.
    """
    if given is not None and given != OWN:
        return Root(given, "it was asked for")
    files = files or Files()
    own = own_cgroup(files, mounts or Mounts())
    if own is not None:
        if files.is_delegated(str(own)):
            return Root(own, "the server was started in it, and it is marked as delegated")
        if own.name == LEAF and files.is_delegated(str(own.parent)):
            return Root(
                own.parent, f"the server was started in {own}, and it is marked as delegated"
            )
    if given is None:
        return Root(default, "the default; the server was started in no cgroup that is delegated")
    if own is not None:
        return Root(own, "the server was started in it")
    raise CgroupUnavailable(
        "cannot use the cgroup that the server was started in: no cgroup2 that is mounted here "
        "shows it; mount one (mount -t cgroup2 none DIRECTORY), or name a cgroup (--cgroup-root)"
    )


def own_cgroup(files: Files, mounts: Mounts) -> Path | None:
    """Return where this process finds the cgroup that it is in; None if nowhere."""
    for place in places(parse_own_cgroup(mounts.own_cgroups()), mounts.table()):
        try:
            if _is_in(place, files):
                return Path(place)
        except OSError:
            # Another mount on top of it hides it, or the cgroup was removed.
            continue
    return None


def parse_own_cgroup(text: str) -> str:
    """Read the line "0::PATH" of /proc/<pid>/cgroup (cgroups(7)); empty if there is none."""
    for line in text.splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return ""


def places(cgroup: str, mounts: Iterable[Mount]) -> Iterator[str]:
    """Return the paths at which mounts show a cgroup that /proc/<pid>/cgroup names.

    The name and the roots of mounts are relative to the same cgroup, that of the cgroup namespace;
    what is above that begins with "/.." (cgroup_namespaces(7)).
    """
    for mount in mounts:
        if mount.kind != "cgroup2":
            continue
        root = mount.root.rstrip("/")
        rest = cgroup.removeprefix(root)
        if cgroup.startswith(root) and rest[:1] in ("", "/") and ".." not in rest.split("/"):
            yield f"{mount.point.rstrip('/')}{rest.rstrip('/')}"


def inner_processes(root: str, files: Files) -> list[str]:
    """Return the pids of the processes that keep a root from passing controllers on.

    The root of the whole hierarchy is exempt; it is the only cgroup that has no type. Raises
    OSError.
    """
    if not files.exists(f"{root}/cgroup.type"):
        return []
    return files.read(f"{root}/cgroup.procs").split()


def others(pids: Iterable[str]) -> list[str]:
    """Return the pids that are not this process's."""
    return [pid for pid in pids if pid != str(os.getpid())]


def leave_root(root: str, files: Files) -> None:
    """Move this process into the leaf, if it is in the root itself; no other is touched.

    Raises OSError.
    """
    if str(os.getpid()) not in inner_processes(root, files):
        return
    leaf = f"{root}/{LEAF}"
    with contextlib.suppress(FileExistsError):
        files.make_cgroup(leaf)
    files.write(f"{leaf}/cgroup.procs", str(os.getpid()))


def _is_in(cgroup: str, files: Files) -> bool:
    return str(os.getpid()) in files.read(f"{cgroup}/cgroup.procs").split()
