"""Pausing a job, in the fake tree: the kernel says when it is frozen."""

import asyncio
import errno

import pytest

from jobworker.cgroups import Cgroup
from jobworker.errors import FailedPrecondition, ResourceExhausted
from jobworker.job import freezer
from jobworker.testing import FakeCgroupTree
from tests.support.waiting import PATIENCE

PATH = "/cgroup2/job"
FREEZE = f"{PATH}/cgroup.freeze"


@pytest.fixture
def tree():
    tree = FakeCgroupTree(mounted_at="/cgroup2")
    tree.mkdir(PATH)
    tree.write(f"{PATH}/cgroup.procs", "10")
    return tree


@pytest.fixture
def cgroup(tree):
    return Cgroup(PATH, tree.files)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(freezer, "PATIENCE", 0.02)


async def test_there_and_back(tree, cgroup):
    assert await freezer.set_frozen(cgroup, frozen=True)
    assert freezer.is_frozen(cgroup)
    assert await freezer.set_frozen(cgroup, frozen=False)
    assert not freezer.is_frozen(cgroup)


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_second_time_changes_nothing(cgroup, frozen):
    await freezer.set_frozen(cgroup, frozen=True)
    await freezer.set_frozen(cgroup, frozen=frozen)
    assert not await freezer.set_frozen(cgroup, frozen=frozen)


async def test_it_returns_when_the_kernel_says_so_and_not_before(tree, cgroup):
    write = tree.write
    tree.write = lambda path, text: None if path == FREEZE else write(path, text)
    pausing = asyncio.create_task(freezer.set_frozen(cgroup, frozen=True))
    await asyncio.sleep(0)
    tree.write(f"{PATH}/cgroup.procs", "11")  # An event of another kind.
    for _ in range(10):
        await asyncio.sleep(0)
    assert not pausing.done()
    write(FREEZE, "1")
    assert await asyncio.wait_for(pausing, PATIENCE)


@pytest.mark.usefixtures("hasty")
async def test_a_job_that_cannot_be_frozen_now_goes_on(tree, cgroup):
    tree.ignore_writes(FREEZE)
    with pytest.raises(FailedPrecondition, match=r"cannot pause job job: .* so it goes on"):
        await freezer.set_frozen(cgroup, frozen=True)
    assert tree.writes[-2:] == [(FREEZE, "1"), (FREEZE, "0")]


@pytest.mark.usefixtures("hasty")
async def test_a_job_that_stays_frozen_for_another_reason_is_told(tree, cgroup):
    await freezer.set_frozen(cgroup, frozen=True)
    tree.ignore_writes(FREEZE)
    with pytest.raises(FailedPrecondition, match=r"cannot resume job job: .* still frozen"):
        await freezer.set_frozen(cgroup, frozen=False)
    assert tree.writes[-1] == (FREEZE, "0")


async def test_a_pause_that_is_given_up_lets_the_job_go_on(tree, cgroup):
    tree.ignore_writes(FREEZE)
    pausing = asyncio.create_task(freezer.set_frozen(cgroup, frozen=True))
    await asyncio.sleep(0)
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    assert tree.writes[-2:] == [(FREEZE, "1"), (FREEZE, "0")]


@pytest.mark.usefixtures("hasty")
async def test_a_job_that_was_frozen_already_stays_so_whatever_happens(tree, cgroup):
    await freezer.set_frozen(cgroup, frozen=True)
    tree.writes.clear()
    tree.fail("*/cgroup.events", errno.EIO, "read")
    with pytest.raises(FailedPrecondition, match="Input/output"):
        await freezer.set_frozen(cgroup, frozen=True)
    assert (FREEZE, "0") not in tree.writes


async def test_a_job_that_ends_meanwhile_has_ended(tree, cgroup):
    tree.ignore_writes(FREEZE)
    pausing = asyncio.create_task(freezer.set_frozen(cgroup, frozen=True))
    await asyncio.sleep(0)
    tree.exit(10)
    with pytest.raises(FailedPrecondition, match="cannot pause job job: no process is left"):
        await asyncio.wait_for(pausing, PATIENCE)


async def test_a_job_whose_cgroup_is_gone_has_ended(tree):
    with pytest.raises(FailedPrecondition, match="cannot resume job gone: no process is left"):
        await freezer.set_frozen(Cgroup("/cgroup2/gone", tree.files), frozen=False)


async def test_want_of_descriptors_is_told(tree, cgroup):
    tree.fail(FREEZE, errno.EMFILE)
    with pytest.raises(ResourceExhausted, match="cannot pause job job"):
        await freezer.set_frozen(cgroup, frozen=True)
