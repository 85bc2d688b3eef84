"""Stand-ins for the kernel's interfaces that behave like them, for tests of code on top."""

from __future__ import annotations

from jobworker.testing.cgroup_files import Host
from jobworker.testing.cgroupfs import FakeCgroupTree

__all__ = ["FakeCgroupTree", "Host"]
