"""The guest's kernel: everything that limits need is there, and the library understands it."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups import Service
from jobworker.cgroups.controllers import CONTROLLERS
from jobworker.cgroups.files import Files
from jobworker.cgroups.limits import TABLE, Row
from jobworker.errors import ControllerUnavailable
from jobworker.testing.contract import CORE_CHECKS, LIMIT_CHECKS, Site
from tests.guest.measuring import DISK, device_number, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def service(cgroup_root: Path) -> Service:
    """The library on the guest's kernel, as in a server."""
    service = Service(cgroup_root)
    service.setup()
    return service


@pytest.fixture
def site(cgroup_root: Path) -> Iterator[Site]:
    """Where the checks of the contract work."""
    enabled = " ".join(f"+{name}" for name in CONTROLLERS)
    (cgroup_root / "cgroup.subtree_control").write_text(enabled, encoding="ascii")
    processes: list[subprocess.Popen[bytes]] = []

    def spawn() -> int:
        processes.append(subprocess.Popen(["sleep", "1000"]))
        return processes[-1].pid

    yield Site(Files(), str(cgroup_root), spawn)
    for process in processes:
        process.kill()
        process.wait()


def test_kernel_has_every_controller(hierarchy: Path):
    offered = (hierarchy / "cgroup.controllers").read_text().split()

    assert set(CONTROLLERS) <= set(offered)


def test_nothing_is_bound_to_cgroup_v1(hierarchy: Path):
    mounts = subprocess.check_output(["findmnt", "-rno", "FSTYPE,TARGET"], text=True).splitlines()

    assert [line for line in mounts if line.startswith("cgroup")] == [f"cgroup2 {hierarchy}"]


async def test_server_enables_every_controller_for_its_jobs(jobs):
    job_id = await jobs.start("sleep", "1000")

    enabled = (jobs.cgroup(job_id) / "cgroup.controllers").read_text().split()

    assert set(enabled) == set(CONTROLLERS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.file}-{row.limit}")
def test_limit_is_in_force_or_the_report_says_what_its_file_needs(
    row: Row, service: Service, figures: Callable[..., None]
):
    bare = service.create_cgroup(str(uuid.uuid4()))
    there = {each.file for each in TABLE if Path(bare.path, each.file).exists()}
    if row.file not in there:
        figures(row.limit, row.file, asked="", measured=f"needs {row.needs}")
    wanted, job_id = one_of_each(DISK)[row.limit], str(uuid.uuid4())

    if not there & {each.file for each in TABLE if each.limit == row.limit}:
        with pytest.raises(ControllerUnavailable, match=re.escape(f"needs {row.needs}")):
            service.create_cgroup(job_id, wanted)
        return
    in_force = service.create_cgroup(job_id, wanted).limits()

    assert in_force == one_of_each(device_number(DISK))[row.limit]


@pytest.mark.parametrize("check", CORE_CHECKS + LIMIT_CHECKS, ids=lambda check: check.__name__)
def test_kernel_keeps_the_contract(check: Callable[[Site], None], site: Site):
    check(site)
