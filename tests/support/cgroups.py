"""A cgroup v2 hierarchy to test in, and cgroups of a test's own that leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Unusable(Exception):
    """Raised when the tests cannot create cgroups here; the text says what they need."""


@contextlib.contextmanager
def hierarchy() -> Iterator[Path]:
    """Find a cgroup2 mount that can be written, or mount one. Raises Unusable."""
    if os.geteuid() != 0:
        raise Unusable("root, which alone may create cgroups. Try: sudo make test-e2e")
    if (mount := next(filter(_is_usable, _mounts()), None)) is not None:
        yield mount
        return
    # No TemporaryDirectory: if unmounting fails, that would try to remove what is in the hierarchy,
    # and close the root of it, which all mounts of it share, to other users.
    directory = Path(tempfile.mkdtemp(prefix="jobworker-test-"))
    try:
        directory.chmod(0o755)  # Tests as another user look into it.
        with _mounted(directory):
            yield directory
    finally:
        directory.rmdir()


@contextlib.contextmanager
def _mounted(directory: Path) -> Iterator[None]:
    command = ["mount", "-t", "cgroup2", "none", str(directory)]
    attempt = subprocess.run(command, capture_output=True, text=True, check=False)
    if attempt.returncode != 0:
        why = attempt.stderr.partition("\n")[0]
        raise Unusable(
            f"a cgroup v2 hierarchy that can be written, and mounting one failed ({why}). "
            "In a container, run it with --privileged"
        )
    try:
        if not _is_usable(directory):
            raise Unusable(f"Linux 5.14 or later (this is {platform.release()})")
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def _mounts() -> Iterator[Path]:
    for line in os.fsdecode(Path("/proc/self/mounts").read_bytes()).split("\n")[:-1]:
        _source, target, kind, *_ = line.split()
        if kind == "cgroup2":  # Spaces in the path are octal escapes (proc(5)).
            yield Path(target.encode().decode("unicode_escape"))


def _is_usable(mount: Path) -> bool:
    probe = mount / f"jobworker-test-{uuid.uuid4()}"
    try:
        probe.mkdir()
    except OSError:
        return False
    try:
        return (probe / "cgroup.kill").exists()  # Linux 5.14
    finally:
        probe.rmdir()


@contextlib.contextmanager
def own_cgroup(mount: Path) -> Iterator[Path]:
    """Make a cgroup; afterwards kill what is left in it and below, and remove it."""
    root = mount / f"jobworker-test-{uuid.uuid4()}"
    root.mkdir()
    try:
        yield root
    finally:
        empty_cgroup(root)
        for directory, _, _ in os.walk(root, topdown=False):
            Path(directory).rmdir()


def populated(cgroup: Path) -> bool:
    """Whether `cgroup` is there, and a process in it or below (cgroup.events, cgroups(7))."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text(encoding="ascii")
    except OSError:  # ENOENT, or ENODEV if it was removed after it was opened.
        return False


def empty_cgroup(cgroup: Path) -> None:
    """Kill every process in `cgroup` and below, and wait until they are gone."""
    (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
    wait_until(lambda: not populated(cgroup), f"{cgroup} became empty")
