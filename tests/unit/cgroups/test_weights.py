"""Whether weights of disk I/O have an effect, on a sysfs and a hierarchy of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups import Limits, Service
from jobworker.cgroups.devices import Devices
from jobworker.cgroups.mounts import Mount, Mounts

if TYPE_CHECKING:
    from pathlib import Path

HALF = Limits(io_weight=50)
DISABLED = "254:0 enable=0 ctrl=auto rpct=0.00 rlat=250000 min=1.00 max=10000.00\n"
ENABLED = DISABLED.replace("enable=0", "enable=1")


class Mounted(Mounts):
    """A mount table in which a directory is the root of cgroup2."""

    def __init__(self, point: Path) -> None:
        self._point = point

    def table(self) -> tuple[Mount, ...]:
        part = Mount("0:28", "/part", "cgroup2", ("rw",), root="/part")
        return (part, Mount("0:28", str(self._point), "cgroup2", ("rw",)))


@pytest.fixture
def scheduler(tmp_path: Path) -> Path:
    """What the only disk's scheduler is."""
    file = tmp_path / "block" / "vda" / "queue" / "scheduler"
    file.parent.mkdir(parents=True)
    file.write_text("[none] mq-deadline bfq\n")
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The hierarchy's root, of a kernel that has no cost model."""
    (tmp_path / "cgroup2").mkdir()
    return tmp_path / "cgroup2"


@pytest.fixture
def qos(root: Path) -> Path:
    """The file of a kernel that has one; no disk was ever enabled in it."""
    (root / "io.cost.qos").touch()
    return root / "io.cost.qos"


@pytest.fixture
def service(root: Path, scheduler: Path, tmp_path: Path) -> Service:
    assert scheduler.exists()
    return Service(root, mounts=Mounted(root), devices=Devices(tmp_path))


@pytest.mark.parametrize("content", ["", DISABLED, "8:0 enable=0\n" + DISABLED])
def test_weight_that_no_disk_heeds_is_said_with_what_to_do(
    content: str, qos: Path, service: Service
):
    qos.write_text(content)

    (warning,) = service.warnings(HALF)

    assert warning.startswith("io_weight has no effect: ")
    assert "echo bfq > /sys/block/DISK/queue/scheduler" in warning
    assert f"echo 'MAJOR:MINOR enable=1' > {qos}" in warning


def test_kernel_without_the_cost_model_is_told_of_bfq_alone(service: Service):
    (warning,) = service.warnings(HALF)

    assert "this kernel has no io.cost.qos" in warning
    assert "echo bfq > /sys/block/DISK/queue/scheduler" in warning


def test_weight_has_an_effect_where_a_disk_is_enabled(qos: Path, service: Service):
    qos.write_text("8:0 enable=0\n" + ENABLED)

    assert service.warnings(HALF) == ()


@pytest.mark.usefixtures("qos")
def test_weight_has_an_effect_where_bfq_is_a_disks_scheduler(service: Service, scheduler: Path):
    scheduler.write_text("none mq-deadline [bfq]\n")

    assert service.warnings(HALF) == ()


def test_root_of_a_cgroup_namespace_is_not_taken_for_the_hierarchys(root: Path, service: Service):
    (root / "cgroup.type").write_text("domain\n")

    (warning,) = service.warnings(HALF)

    assert warning.startswith("io_weight may have no effect: ")
    assert "cannot be seen from here" in warning


def test_what_cannot_be_read_keeps_no_job_from_starting(root: Path, service: Service):
    (root / "io.cost.qos").mkdir()

    (warning,) = service.warnings(HALF)

    assert warning.startswith("io_weight may have no effect: cannot look at io.cost.qos")


@pytest.mark.parametrize("limits", [Limits(), Limits(io_weight=100)])
def test_nothing_is_said_of_weights_where_none_is_asked_for(limits: Limits, service: Service):
    assert service.warnings(limits) == ()


def test_other_advice_is_given_as_before(service: Service):
    limits = Limits(memory_high=2**20, io_weight=50)

    assert service.warnings(limits)[:-1] == limits.warnings()
    assert len(service.warnings(limits)) == 2
