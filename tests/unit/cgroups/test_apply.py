"""Limits of a live cgroup, in the fake tree: all of them change, or none."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups import MAX, CpuMax, DeviceLimit, Limits, Service
from jobworker.cgroups.devices import Devices
from jobworker.errors import (
    CgroupUnavailable,
    ControllerUnavailable,
    InvalidArgument,
    LimitNotApplied,
    ResourceExhausted,
)
from jobworker.testing import FakeCgroupTree

if TYPE_CHECKING:
    from pathlib import Path

JOB = "3f2c9a44-0d5e-4c39-9c4b-0a8f6b1f5f11"
PATH = f"/cgroup2/jobworker/{JOB}"
BEFORE = Limits(
    memory_high=2**24,
    memory_max=2**25,
    cpu_max=CpuMax(50_000),
    cpu_burst_max=20_000,
    io_max_rbps=(DeviceLimit("254:0", 10**6),),
    pids_max=64,
)
FOUR = Limits(memory_high=2**22, memory_max=2**23, cpu_weight=50, pids_max=32)
"""Written as memory.high, cpu.weight, pids.max, memory.max."""


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    for number in ("254:0", "8:0"):
        (tmp_path / "dev" / "block" / number).mkdir(parents=True)
    return Devices(tmp_path)


@pytest.fixture
def tree() -> FakeCgroupTree:
    return FakeCgroupTree()


@pytest.fixture
def service(tree: FakeCgroupTree, devices: Devices) -> Service:
    service = tree.service(devices=devices)
    service.setup()
    service.create_cgroup(JOB, BEFORE)
    tree.writes.clear()
    return service


def everything(tree: FakeCgroupTree) -> dict[str, str]:
    """All that the cgroup's limit files say."""
    node, _ = tree._file(f"{PATH}/cgroup.procs")
    return {name: text for name, text in node.contents.items() if not name.startswith("cgroup.")}


def test_what_is_given_changes_and_all_else_stays(service: Service):
    changed = service.update_limits(JOB, Limits(memory_max=2**26, cpu_weight=7))

    assert changed.limits == service.cgroup(JOB).limits()
    assert changed.limits == Limits(
        memory_high=2**24,
        memory_max=2**26,
        cpu_max=CpuMax(50_000),
        cpu_burst_max=20_000,
        cpu_weight=7,
        io_max_rbps=(DeviceLimit("254:0", 10**6),),
        pids_max=64,
    )


def test_only_what_is_given_is_written(tree: FakeCgroupTree, service: Service):
    service.update_limits(JOB, FOUR)

    assert tree.writes == [
        (f"{PATH}/memory.high", str(2**22)),
        (f"{PATH}/cpu.weight", "50"),
        (f"{PATH}/pids.max", "32"),
        (f"{PATH}/memory.max", str(2**23)),
    ]


def test_max_takes_limits_away(service: Service):
    everything = Limits(
        memory_high=MAX,
        memory_max=MAX,
        cpu_max=CpuMax(MAX),
        cpu_burst_max=0,
        io_max_rbps=(DeviceLimit("254:0", MAX),),
        pids_max=MAX,
    )

    assert service.update_limits(JOB, everything).limits == Limits()


def test_other_devices_and_other_keys_of_io_max_stay(tree: FakeCgroupTree, devices: Devices):
    tree.host = type(tree.host)(devices=frozenset({"254:0", "8:0"}))
    service = tree.service(devices=devices)
    service.setup()
    both = (DeviceLimit("254:0", 100), DeviceLimit("8:0", 200))
    service.create_cgroup(JOB, Limits(io_max_rbps=both, io_max_wiops=both))

    changed = service.update_limits(JOB, Limits(io_max_rbps=(DeviceLimit("8:0", 7),)))

    assert changed.limits == Limits(
        io_max_rbps=(DeviceLimit("254:0", 100), DeviceLimit("8:0", 7)), io_max_wiops=both
    )


@pytest.mark.parametrize(
    ("quota", "burst"), [(10_000, 5_000), (90_000, 60_000), (20_000, 20_000), (50_000, 0)]
)
def test_quota_and_burst_can_change_in_both_directions(service: Service, quota: int, burst: int):
    changed = service.update_limits(JOB, Limits(cpu_max=CpuMax(quota), cpu_burst_max=burst))

    assert changed.limits.cpu_max == CpuMax(quota)
    assert changed.limits.cpu_burst_max == (burst or None)


def test_burst_above_the_quota_in_force_touches_nothing(tree: FakeCgroupTree, service: Service):
    with pytest.raises(InvalidArgument, match="cpu_burst_max"):
        service.update_limits(JOB, Limits(memory_max=2**26, cpu_burst_max=60_000))

    assert tree.writes == []


@pytest.mark.parametrize("failing", ["memory.high", "cpu.weight", "pids.max", "memory.max"])
def test_write_that_fails_undoes_those_before_it_in_the_opposite_order(
    tree: FakeCgroupTree, service: Service, failing: str
):
    before = everything(tree)
    tree.fail(f"*/{failing}", errno.EINVAL)

    with pytest.raises(LimitNotApplied, match=rf"cannot apply {failing} to job {JOB}: the kernel"):
        service.update_limits(JOB, FOUR)

    order = ["memory.high", "cpu.weight", "pids.max", "memory.max"]
    done = order[: order.index(failing)]
    written = [path.rpartition("/")[2] for path, _ in tree.writes]
    assert [name for name in written if name != failing] == [*done, *reversed(done)]
    assert everything(tree) == before


@pytest.mark.parametrize("deaf", ["memory.high", "cpu.weight", "pids.max", "memory.max"])
def test_limit_that_is_not_in_force_undoes_all(tree: FakeCgroupTree, service: Service, deaf: str):
    before = everything(tree)
    tree.ignore_writes(f"*/{deaf}")

    with pytest.raises(LimitNotApplied, match=rf"{deaf} .* was written but .* is in force") as no:
        service.update_limits(JOB, FOUR)

    assert everything(tree) == before
    assert "set back" not in str(no.value)


def test_both_of_quota_and_burst_are_undone(tree: FakeCgroupTree, service: Service):
    before = everything(tree)
    tree.fail("*/pids.max", errno.EINVAL)

    with pytest.raises(LimitNotApplied):
        service.update_limits(JOB, Limits(cpu_max=CpuMax(9_000), cpu_burst_max=8_000, pids_max=1))

    assert everything(tree) == before


def test_what_cannot_be_undone_is_told(tree: FakeCgroupTree, service: Service):
    tree.fail("*/pids.max", errno.EINVAL)
    tree.fail("*/memory.high", errno.EBUSY, text=str(2**24))

    with pytest.raises(LimitNotApplied) as caught:
        service.update_limits(JOB, FOUR)

    assert f"cannot apply pids.max to job {JOB}" in str(caught.value)
    assert f"memory.high could not be set back to '{2**24}'" in str(caught.value)
    assert "cpu.weight" not in str(caught.value)


def test_undoing_that_has_no_effect_is_told(tree: FakeCgroupTree, service: Service):
    tree.fail("*/pids.max", errno.EINVAL)
    tree.answer("*/cpu.weight", lambda: "50\n" if tree.writes else None)

    with pytest.raises(LimitNotApplied, match=r"cpu\.weight could not be set back to '100'"):
        service.update_limits(JOB, FOUR)


def test_a_change_can_be_taken_back_later(tree: FakeCgroupTree, service: Service):
    before = everything(tree)
    changed = service.update_limits(JOB, FOUR)

    changed.undo()

    assert everything(tree) == before


def test_taking_back_that_fails_says_so(tree: FakeCgroupTree, service: Service):
    changed = service.update_limits(JOB, FOUR)
    tree.fail("*/pids.max", errno.EINVAL)

    with pytest.raises(LimitNotApplied, match=r"pids\.max could not be set back to '64'"):
        changed.undo()


def test_no_limit_at_all_is_refused(service: Service):
    with pytest.raises(InvalidArgument, match="at least one limit"):
        service.update_limits(JOB, Limits())


def test_unknown_device_touches_nothing(tree: FakeCgroupTree, service: Service):
    with pytest.raises(InvalidArgument, match="9:9"):
        service.update_limits(JOB, Limits(pids_max=1, io_max_rbps=(DeviceLimit("9:9", 1),)))

    assert tree.writes == []


def test_missing_controller_touches_nothing_and_says_what_to_do(devices: Devices):
    tree = FakeCgroupTree(("pids",), bound_to_v1={"memory": "/sys/fs/cgroup/memory"})
    service = tree.service(devices=devices)
    service.setup()
    service.create_cgroup(JOB)
    tree.writes.clear()

    with pytest.raises(ControllerUnavailable, match=r"apply memory\.max .* cgroup_no_v1=memory"):
        service.update_limits(JOB, Limits(pids_max=1, memory_max=2**26))

    assert tree.writes == []


def test_change_never_sets_up(tree: FakeCgroupTree, service: Service):
    """It runs in a thread, while a start may set up."""
    tree.write("/cgroup2/jobworker/cgroup.subtree_control", "-cpu")
    tree.writes.clear()

    with pytest.raises(ControllerUnavailable, match=r"cpu\.weight .*subtree_control"):
        service.update_limits(JOB, Limits(cpu_weight=50))

    assert tree.writes == []


def test_missing_file_touches_nothing_and_names_the_kernel(devices: Devices):
    tree = FakeCgroupTree(without=frozenset({"memory.oom.group"}))
    service = tree.service(devices=devices)
    service.setup()
    service.create_cgroup(JOB)
    tree.writes.clear()

    with pytest.raises(ControllerUnavailable, match=r"Linux 4\.19"):
        service.update_limits(JOB, Limits(pids_max=1, memory_oom_group=True))

    assert tree.writes == []


def test_cgroup_that_is_gone_has_no_limits_to_change(tree: FakeCgroupTree, service: Service):
    tree.rmdir(PATH)

    with pytest.raises(CgroupUnavailable, match=f"job {JOB} has ended"):
        service.update_limits(JOB, FOUR)

    assert tree.writes == []


def test_cgroup_that_goes_meanwhile_is_told_apart_from_a_refusal(
    tree: FakeCgroupTree, service: Service
):
    write = tree.write

    def remove_at_the_third(path: str, text: str) -> None:
        if path.endswith("/pids.max"):
            tree.rmdir(PATH)
        write(path, text)

    tree.write = remove_at_the_third  # type: ignore[method-assign]

    with pytest.raises(CgroupUnavailable, match=f"job {JOB} has ended"):
        service.update_limits(JOB, FOUR)


@pytest.mark.parametrize("file", ["pids.max", "cpu.max"])
def test_what_is_in_force_must_be_readable_first(tree: FakeCgroupTree, service: Service, file: str):
    tree.fail(f"*/{file}", errno.EIO, "read")

    with pytest.raises(LimitNotApplied, match="those in force cannot be read"):
        service.update_limits(JOB, FOUR)

    assert tree.writes == []


def test_want_of_descriptors_is_not_the_kernels_no(tree: FakeCgroupTree, service: Service):
    before = everything(tree)
    tree.fail("*/pids.max", errno.EMFILE)

    with pytest.raises(ResourceExhausted, match=r"pids\.max"):
        service.update_limits(JOB, FOUR)

    assert everything(tree) == before


def test_what_cannot_be_understood_when_the_change_is_planned_touches_nothing(
    tree: FakeCgroupTree, service: Service
):
    """What was in force could be read, and changes before the change is planned."""
    answers = iter(["33554432\n"])
    tree.answer("*/memory.max", lambda: next(answers, "plenty\n"))

    with pytest.raises(LimitNotApplied, match=r"those in force cannot be read: .*'plenty'"):
        service.update_limits(JOB, FOUR)

    assert tree.writes == []
