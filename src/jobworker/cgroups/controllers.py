"""Which cgroup controllers jobs can use, and why one is missing. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobworker.cgroups.mounts import Mount, Subsystem

CONTROLLERS: Final = ("cpu", "memory", "io", "pids")
"""The controllers that limits need."""

_V1_NAMES: Final = {"io": "blkio"}
"""The names in cgroup v1 that differ."""


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller as jobs find it.

    `bound_at` is where a cgroup v1 mount holds it, or empty. `reason` says why it is not
    available and what to do about that; it is empty for one that is available.
    """

    name: str
    available: bool
    bound_at: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """What is known of the tree that jobs live in.

    `enabled` are the controllers that jobs have, `offered` those in the root's cgroup.controllers;
    `refusals` say why the kernel did not let one be enabled. `partial` tells that the root is not
    the hierarchy's own, so that what it offers was decided above it.
    """

    root: str
    enabled: frozenset[str] = frozenset()
    offered: frozenset[str] = frozenset()
    refusals: Mapping[str, str] | None = None
    partial: bool = False


def diagnose(
    name: str,
    tree: Hierarchy,
    mounts: Sequence[Mount],
    subsystems: Mapping[str, Subsystem],
) -> Controller:
    """Return what there is to know of one controller.

    `subsystems` is /proc/cgroups, which tells only what it lists: since Linux 6.15 that is what
    cgroup v1 can use.
    """
    if name in tree.enabled:
        return Controller(name, available=True)
    v1_name = _V1_NAMES.get(name, name)
    bound_at = next(
        (m.point for m in mounts if m.kind == "cgroup" and v1_name in m.options),
        "",
    )
    subsystem = subsystems.get(v1_name)
    if name in tree.offered:
        refusal = (tree.refusals or {}).get(
            name, "it is missing in the cgroup.subtree_control of their directory"
        )
        reason = f"the {name} controller is not enabled for jobs: {refusal}"
    elif bound_at or (subsystem is not None and subsystem.hierarchy):
        place = f"at {bound_at}" if bound_at else "in a hierarchy that is not mounted here"
        reason = (
            f"the {name} controller is bound to cgroup v1 {place}; boot with "
            f"cgroup_no_v1={name} (or systemd.unified_cgroup_hierarchy=1)"
        )
    elif subsystem is not None and not subsystem.enabled:
        reason = (
            f"the {name} controller is switched off on the kernel's command line; boot without "
            f"cgroup_disable={v1_name}"
        )
    elif tree.partial:
        reason = (
            f"the {name} controller is not delegated to {tree.root}; enable it in the "
            "cgroup.subtree_control of the cgroup above (systemd: Delegate=yes)"
        )
    else:
        reason = f"this kernel has no {name} controller for cgroup v2"
    return Controller(name, available=False, bound_at=bound_at, reason=reason)


def unbound(subsystems: Mapping[str, Subsystem]) -> frozenset[str]:
    """Return the controllers that no cgroup v1 holds, so that cgroup v2 could have them."""
    return frozenset(
        name
        for name in CONTROLLERS
        if (subsystem := subsystems.get(_V1_NAMES.get(name, name))) is not None
        and subsystem.enabled
        and not subsystem.hierarchy
    )
