"""Limits on what a job may use, and the cgroup v2 tree that enforces them.

Names are loaded when first used, because the shim needs `Cgroup` and nothing else of this package.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobworker.cgroups.cgroup import Cgroup
    from jobworker.cgroups.controllers import Controller
    from jobworker.cgroups.limits import MAX, CpuMax, DeviceLimit, Limits
    from jobworker.cgroups.service import Service

__all__ = ["MAX", "Cgroup", "Controller", "CpuMax", "DeviceLimit", "Limits", "Service"]

_HOMES = {
    "MAX": "parse",
    "Cgroup": "cgroup",
    "Controller": "controllers",
    "CpuMax": "limits",
    "DeviceLimit": "limits",
    "Limits": "limits",
    "Service": "service",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - not for the shim

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
