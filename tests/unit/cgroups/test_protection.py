"""Protected memory of jobs is claimed for the cgroup above them, in the fake tree."""

from __future__ import annotations

import errno
from uuid import uuid4

import pytest

from jobworker.cgroups import MAX, Limits, Service
from jobworker.errors import LimitNotApplied
from jobworker.testing import FakeCgroupTree


@pytest.fixture
def tree() -> FakeCgroupTree:
    return FakeCgroupTree()


@pytest.fixture
def service(tree: FakeCgroupTree) -> Service:
    service = tree.service()
    service.setup()
    return service


def claimed(tree: FakeCgroupTree) -> tuple[str, str]:
    least, low = (tree.read(f"/cgroup2/jobworker/memory.{name}").strip() for name in ("min", "low"))
    return least, low


def start(service: Service, **limits: int) -> str:
    job_id = str(uuid4())
    service.create_cgroup(job_id, Limits(**limits))
    return job_id


def test_directory_of_all_jobs_has_what_they_have_together(service, tree):
    start(service, memory_min=2**20)
    start(service, memory_min=2**21, memory_low=2**22)
    start(service)

    assert claimed(tree) == (str(2**20 + 2**21), str(2**22))


def test_what_a_removed_job_had_is_given_up(service, tree):
    start(service, memory_low=2**20)
    gone = start(service, memory_low=2**22)

    service.remove_cgroup(gone)

    assert claimed(tree) == ("0", str(2**20))


def test_what_a_job_had_whose_cgroup_another_removed_is_given_up(service, tree):
    gone = start(service, memory_min=2**22)
    service.cgroup(gone).remove()

    service.release_protection()

    assert claimed(tree) == ("0", "0")


def test_changed_protection_is_claimed(service, tree):
    job_id = start(service, memory_min=2**22, memory_low=2**22)

    service.update_limits(job_id, Limits(memory_min=2**23, memory_low=0))

    assert claimed(tree) == (str(2**23), "0")


def test_change_is_undone_if_its_protection_cannot_be_claimed(service, tree):
    job_id = start(service, memory_low=2**20)
    tree.fail("/cgroup2/jobworker/memory.low", errno.EACCES)

    with pytest.raises(LimitNotApplied, match="cannot protect memory of job"):
        service.update_limits(job_id, Limits(memory_low=2**22))

    assert service.cgroup(job_id).limits() == Limits(memory_low=2**20)


def test_protection_of_everything_is_claimed_as_such(service, tree):
    start(service, memory_min=MAX)
    start(service, memory_min=2**20)

    assert claimed(tree) == ("max", "0")


def test_job_does_not_start_if_its_protection_cannot_be_claimed(service, tree):
    tree.fail("/cgroup2/jobworker/memory.min", errno.EACCES)

    with pytest.raises(LimitNotApplied, match="cannot protect memory of job"):
        start(service, memory_min=2**20)

    assert tree.cgroups() == ["jobworker"]


def test_half_a_claim_is_taken_back_with_the_change(service, tree):
    job_id = start(service, memory_min=2**20, memory_low=2**20)
    tree.fail("/cgroup2/jobworker/memory.low", errno.EACCES)

    with pytest.raises(LimitNotApplied, match="cannot protect memory of job"):
        service.update_limits(job_id, Limits(memory_min=2**22, memory_low=2**22))

    assert claimed(tree) == (str(2**20), str(2**20))


def test_half_a_claim_is_taken_back_with_the_job(service, tree):
    tree.fail("/cgroup2/jobworker/memory.low", errno.EACCES)

    with pytest.raises(LimitNotApplied, match="cannot protect memory of job"):
        start(service, memory_min=2**20, memory_low=2**20)

    assert claimed(tree) == ("0", "0")


def test_job_that_does_not_start_says_that_its_claim_stays(service, tree):
    tree.fail("/cgroup2/jobworker/memory.low", errno.EACCES)
    tree.fail("/cgroup2/jobworker/memory.min", errno.EIO, text="0")

    with pytest.raises(LimitNotApplied, match="Permission denied") as caught:
        start(service, memory_min=2**20, memory_low=2**20)

    assert "Input/output error" in caught.value.__notes__[0]


def test_change_that_can_neither_be_claimed_nor_undone_says_both(service, tree):
    job_id = start(service, memory_min=2**20, memory_low=2**20)
    tree.fail("/cgroup2/jobworker/memory.low", errno.EACCES)
    tree.fail(f"*/{job_id}/memory.min", errno.EIO, text=str(2**20))

    with pytest.raises(LimitNotApplied) as caught:
        service.update_limits(job_id, Limits(memory_min=2**22, memory_low=2**22))

    assert "cannot protect memory of job" in str(caught.value)
    assert "memory.min could not be set back to" in str(caught.value)


def test_change_that_is_undone_later_takes_its_claim_back(service, tree):
    job_id = start(service, memory_min=2**20, memory_low=2**22)

    service.update_limits(job_id, Limits(memory_min=2**21, memory_low=0)).undo()

    assert claimed(tree) == (str(2**20), str(2**22))


def test_claim_that_cannot_be_taken_back_later_is_told(service, tree):
    job_id = start(service, memory_min=2**20)
    changed = service.update_limits(job_id, Limits(memory_min=2**21))
    tree.fail("/cgroup2/jobworker/memory.min", errno.EIO)

    with pytest.raises(LimitNotApplied, match="cannot protect memory of job"):
        changed.undo()
