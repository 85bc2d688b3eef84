"""What tests do with cgroups past the library that they test."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def own_cgroup(parent: Path) -> Iterator[Path]:
    """Yield a new cgroup; afterwards what is left in it is killed and it is removed."""
    root = parent / f"jobworker-test-{uuid.uuid4()}"
    root.mkdir()
    yield root
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
