"""What the fake tree offers to tests, beside behaving like the kernel."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest

from jobworker.testing import FakeCgroupTree, Host
from jobworker.testing.cgroup_files import CONTROLLER_FILES, taken


@pytest.fixture
def tree() -> FakeCgroupTree:
    return FakeCgroupTree(mounted_at="/cgroup2")


def test_injected_fault_fails_one_operation(tree: FakeCgroupTree):
    tree.fail("/cgroup2/a/*", errno.EIO)
    tree.mkdir("/cgroup2/a")

    with pytest.raises(OSError, match="Input/output"):
        tree.write("/cgroup2/a/cgroup.freeze", "1")

    assert tree.read("/cgroup2/a/cgroup.freeze") == "0\n"


def test_ignored_write_changes_nothing(tree: FakeCgroupTree):
    tree.mkdir("/cgroup2/a")
    tree.ignore_writes("*/cgroup.freeze")

    tree.write("/cgroup2/a/cgroup.freeze", "1")

    assert tree.read("/cgroup2/a/cgroup.freeze") == "0\n"


def test_enabling_a_controller_fills_the_cgroups_below(tree: FakeCgroupTree):
    tree.mkdir("/cgroup2/a")
    assert not tree.exists("/cgroup2/a/memory.max")

    tree.write("/cgroup2/cgroup.subtree_control", "+memory")

    assert tree.read("/cgroup2/a/memory.max") == "max\n"
    tree.write("/cgroup2/cgroup.subtree_control", "-memory")
    assert not tree.exists("/cgroup2/a/memory.max")


def test_refused_controller_leaves_all_as_they_were(tree: FakeCgroupTree):
    with pytest.raises(OSError, match="Invalid argument"):
        tree.write("/cgroup2/cgroup.subtree_control", "+memory +nonsense")

    assert tree.read("/cgroup2/cgroup.subtree_control") == "\n"


def test_controller_in_use_below_cannot_be_taken_away(tree: FakeCgroupTree):
    tree.mkdir("/cgroup2/a")
    for path in ("/cgroup2", "/cgroup2/a"):
        tree.write(f"{path}/cgroup.subtree_control", "+memory")

    with pytest.raises(OSError, match="busy"):
        tree.write("/cgroup2/cgroup.subtree_control", "-memory")


def test_end_of_a_process_empties_its_cgroup(tree: FakeCgroupTree):
    tree.mkdir("/cgroup2/a")
    tree.write("/cgroup2/a/cgroup.procs", "7")

    tree.exit(7)

    assert tree.read("/cgroup2/a/cgroup.events") == "populated 0\nfrozen 0\n"


def test_burst_stays_below_the_quota_in_both_orders():
    contents, host = dict(CONTROLLER_FILES["cpu"]), Host()
    contents["cpu.max"] = taken("cpu.max", "50000", contents, host)
    contents["cpu.max.burst"] = taken("cpu.max.burst", "50000", contents, host)

    for file, text in (("cpu.max.burst", "50001"), ("cpu.max", "49999")):
        with pytest.raises(OSError, match="Invalid argument"):
            taken(file, text, contents, host)


def test_io_max_keeps_the_keys_that_are_not_named():
    contents, host = dict(CONTROLLER_FILES["io"]), Host()
    for text in ("254:0 rbps=1000", "254:0 wiops=5", "254:0 rbps=max"):
        contents["io.max"] = taken("io.max", text, contents, host)

    assert contents["io.max"] == "254:0 rbps=max wbps=max riops=max wiops=5\n"


def test_io_max_of_a_device_without_limits_has_no_line():
    contents, host = dict(CONTROLLER_FILES["io"]), Host()
    for text in ("254:0 rbps=1000", "254:0 rbps=max"):
        contents["io.max"] = taken("io.max", text, contents, host)

    assert contents["io.max"] == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8:0 rbps=1", errno.ENODEV),
        ("254:0 rbps=0", errno.ERANGE),
        ("254:0 rbps=x", errno.EINVAL),
        ("254:0 speed=1", errno.EINVAL),
        ("nonsense", errno.EINVAL),
    ],
)
def test_io_max_refuses_as_the_kernel_does(text: str, number: int):
    with pytest.raises(OSError, match=r".*") as caught:
        taken("io.max", text, dict(CONTROLLER_FILES["io"]), Host())

    assert caught.value.errno == number


def test_open_files_leave_no_descriptor_behind():
    tree, before = FakeCgroupTree(mounted_at="/cgroup2"), open_descriptors()
    tree.mkdir("/cgroup2/a")
    os.close(tree.open("/cgroup2/a/cgroup.events"))
    tree.write("/cgroup2/a/cgroup.procs", "7")

    del tree
    gc.collect()

    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
