"""Why a controller is missing, and what to do about it."""

from __future__ import annotations

import pytest

from jobworker.cgroups.controllers import CONTROLLERS, Controller, Hierarchy, diagnose, unbound
from jobworker.cgroups.limits import TABLE
from jobworker.cgroups.mounts import Mount, Subsystem

V1 = (
    Mount("0:30", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", ("rw", "cpu", "cpuacct")),
    Mount("0:31", "/sys/fs/cgroup/blkio", "cgroup", ("rw", "blkio")),
    Mount("0:32", "/memory", "tmpfs", ("rw", "memory")),
)


def why(name: str, tree: Hierarchy, **subsystems: Subsystem) -> str:
    return diagnose(name, tree, V1, subsystems).reason


def test_every_limit_needs_a_controller_that_is_known():
    assert {row.controller for row in TABLE} == set(CONTROLLERS)


def test_enabled_controller_is_available():
    tree = Hierarchy("/cgroup2", enabled=frozenset({"cpu"}))

    assert diagnose("cpu", tree, V1, {}) == Controller("cpu", available=True)


@pytest.mark.parametrize(
    ("name", "place"), [("cpu", "/sys/fs/cgroup/cpu,cpuacct"), ("io", "/sys/fs/cgroup/blkio")]
)
def test_controller_of_v1_is_found_where_it_is_mounted(name: str, place: str):
    found = diagnose(name, Hierarchy("/cgroup2"), V1, {})

    assert found.bound_at == place
    assert found.reason == (
        f"the {name} controller is bound to cgroup v1 at {place}; boot with cgroup_no_v1={name} "
        "(or systemd.unified_cgroup_hierarchy=1)"
    )


def test_controller_of_v1_may_be_mounted_elsewhere():
    reason = why("memory", Hierarchy("/cgroup2"), memory=Subsystem(4, enabled=True))

    assert "bound to cgroup v1 in a hierarchy that is not mounted here" in reason


def test_controller_may_be_switched_off():
    reason = why("memory", Hierarchy("/cgroup2"), memory=Subsystem(0, enabled=False))

    assert "boot without cgroup_disable=memory" in reason


def test_controller_may_have_been_refused():
    tree = Hierarchy("/c", offered=frozenset({"memory"}), refusals={"memory": "it is busy"})

    assert why("memory", tree) == "the memory controller is not enabled for jobs: it is busy"


def test_controller_may_not_be_delegated():
    tree = Hierarchy("/sys/fs/cgroup/x.service", partial=True)

    reason = why("memory", tree, memory=Subsystem(0, enabled=True))

    assert "not delegated to /sys/fs/cgroup/x.service" in reason
    assert "Delegate=yes" in reason


def test_kernel_may_not_have_the_controller():
    assert why("pids", Hierarchy("/c")) == "this kernel has no pids controller for cgroup v2"


def test_controllers_that_v1_does_not_hold_are_free():
    subsystems = {
        "cpu": Subsystem(0, enabled=True),
        "memory": Subsystem(0, enabled=False),
        "blkio": Subsystem(0, enabled=True),
        "pids": Subsystem(8, enabled=True),
        "hugetlb": Subsystem(0, enabled=True),
    }

    assert unbound(subsystems) == {"cpu", "io"}
