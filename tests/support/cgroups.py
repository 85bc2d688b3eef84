"""What tests do with cgroups past the library that they test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


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
