"""Limits on what a job may use, and the cgroup v2 tree that enforces them.

Names are loaded when first used, because the shim needs `Cgroup` and nothing else of this package.
"""

from __future__ import annotations

from jobworker.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobworker.cgroups.cgroup import Cgroup
    from jobworker.cgroups.controllers import Controller
    from jobworker.cgroups.delegation import Root, choose_root
    from jobworker.cgroups.limits import MAX, CpuMax, DeviceLimit, Limits
    from jobworker.cgroups.service import Service

__all__ = [
    "MAX",
    "Cgroup",
    "Controller",
    "CpuMax",
    "DeviceLimit",
    "Limits",
    "Root",
    "Service",
    "choose_root",
]

_HOMES = {
    "MAX": "parse",
    "Cgroup": "cgroup",
    "Controller": "controllers",
    "CpuMax": "limits",
    "DeviceLimit": "limits",
    "Limits": "limits",
    "Root": "delegation",
    "Service": "service",
    "choose_root": "delegation",
}

__getattr__, __dir__ = attach(__name__, globals(), _HOMES)
