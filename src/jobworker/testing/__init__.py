"""Stand-ins for the kernel's interfaces that behave like them, for tests of code on top.

Names are loaded when first used: a shim that is to be killed at a step loads `faults` alone.
"""

from __future__ import annotations

from jobworker.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobworker.testing.cgroup_files import Host
    from jobworker.testing.cgroupfs import FakeCgroupTree

__all__ = ["FakeCgroupTree", "Host"]

__getattr__, __dir__ = attach(
    __name__, globals(), {"FakeCgroupTree": "cgroupfs", "Host": "cgroup_files"}
)
