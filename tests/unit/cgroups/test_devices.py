"""Names of block devices, on a sysfs of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups.devices import Devices, block_device_number
from jobworker.cgroups.limits import DeviceLimit, Limits
from jobworker.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

NODES = {
    "/dev/vda": "254:0",
    "/dev/vda1": "254:1",
    "/dev/nvme0n1": "259:0",
    "/dev/nvme0n1p2": "259:2",
    "/dev/mapper/data": "252:0",
    "/dev/disk/by-id/virtio-1": "254:0",
    "/dev/gone": "250:9",
}


def number_of(path: str) -> str:
    if path not in NODES:
        raise ValueError(f"there is no device {path}")
    return NODES[path]


def add(sysfs: Path, where: str, number: str, *, hardware: bool = False) -> Path:
    """Make a whole device as sysfs shows it."""
    directory = sysfs / "devices" / where
    directory.mkdir(parents=True)
    (sysfs / "block" / directory.name).symlink_to(directory)
    if number:
        (directory / "dev").write_text(f"{number}\n")
        (sysfs / "dev" / "block" / number).symlink_to(directory)
    if hardware:
        (directory / "device").symlink_to(directory.parent)
    return directory


def add_partition(sysfs: Path, disk: Path, name: str, number: str) -> None:
    directory = disk / name
    directory.mkdir()
    (directory / "partition").write_text("1\n")
    (directory / "dev").write_text(f"{number}\n")
    (sysfs / "dev" / "block" / number).symlink_to(directory)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    (tmp_path / "block").mkdir()
    (tmp_path / "dev" / "block").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def devices(sysfs: Path) -> Devices:
    vda = add(sysfs, "pci0000:00/virtio1/block/vda", "254:0", hardware=True)
    add_partition(sysfs, vda, "vda1", "254:1")
    nvme = add(sysfs, "virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0", hardware=True)
    add_partition(sysfs, nvme, "nvme0n1p2", "259:2")
    add(sysfs, "pci0000:00/nvme/nvme0/nvme0c0n1", "", hardware=True)
    for name, number in (("loop0", "7:0"), ("ram0", "1:0"), ("zram0", "253:0"), ("dm-0", "252:0")):
        add(sysfs, f"virtual/block/{name}", number)
    return Devices(sysfs, number_of)


def test_physical_disks_are_those_with_hardware_and_a_number(devices: Devices):
    assert devices.physical_disks() == ["259:0", "254:0"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("/dev/vda", "254:0"),
        ("/dev/vda1", "254:0"),
        ("/dev/nvme0n1p2", "259:0"),
        ("/dev/mapper/data", "252:0"),
        ("/dev/disk/by-id/virtio-1", "254:0"),
        ("254:0", "254:0"),
        ("254:1", "254:0"),
        ("7:0", "7:0"),
    ],
)
def test_name_means_its_whole_device(devices: Devices, name: str, number: str):
    assert devices.whole_device(name) == number


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("/dev/sdz", "there is no device /dev/sdz"),
        ("/dev/gone", "no block device /dev/gone"),
        ("9:9", "no block device 9:9"),
        ("vda", "neither an absolute path nor MAJOR:MINOR"),
        ("../../etc", "neither an absolute path"),
        ("8:0\n8:16 rbps=1", "neither an absolute path"),
        ("08:0", "neither an absolute path"),
    ],
)
def test_unknown_device_is_refused(devices: Devices, name: str, problem: str):
    with pytest.raises(InvalidArgument, match=problem) as caught:
        devices.resolve(Limits(io_max_wbps=(DeviceLimit(name, 1000),)))

    assert caught.value.field == "limits.io_max_wbps"


def test_no_name_means_all_physical_disks(devices: Devices):
    limits = devices.resolve(Limits(io_max_rbps=(DeviceLimit("", 1000),)))

    assert limits.io_max_rbps == (DeviceLimit("254:0", 1000), DeviceLimit("259:0", 1000))


def test_named_disk_goes_before_all_disks(devices: Devices):
    limits = devices.resolve(
        Limits(io_max_rbps=(DeviceLimit("", 1000), DeviceLimit("/dev/vda1", 5)))
    )

    assert limits.io_max_rbps == (DeviceLimit("254:0", 5), DeviceLimit("259:0", 1000))


def test_two_names_of_one_disk_are_refused(devices: Devices):
    twice = (DeviceLimit("/dev/vda", 1000), DeviceLimit("/dev/vda1", 5))

    with pytest.raises(InvalidArgument, match="named twice"):
        devices.resolve(Limits(io_max_riops=twice))


def test_all_disks_of_a_host_without_any_are_refused(sysfs: Path):
    with pytest.raises(InvalidArgument, match="no physical disk"):
        Devices(sysfs, number_of).resolve(Limits(io_max_wiops=(DeviceLimit("", 5),)))


def test_other_limits_stay_as_they_are(devices: Devices):
    limits = Limits(memory_max=2**20, pids_max=4)

    assert devices.resolve(limits) == limits


def test_scheduler_of_a_disk_is_the_one_in_brackets(devices: Devices, sysfs: Path):
    for disk, schedulers in (("vda", "none [mq-deadline] bfq"), ("loop0", "[none] kyber")):
        (sysfs / "block" / disk / "queue").mkdir()
        (sysfs / "block" / disk / "queue" / "scheduler").write_text(f"{schedulers}\n")

    used = {name for name in ("none", "mq-deadline", "bfq") if devices.uses_scheduler(name)}

    assert used == {"none", "mq-deadline"}


def test_host_without_sysfs_has_no_scheduler(tmp_path: Path):
    assert not Devices(tmp_path / "nothing").uses_scheduler("bfq")


def test_node_that_is_no_block_device_is_refused():
    with pytest.raises(ValueError, match="/dev/null is not a block device"):
        block_device_number("/dev/null")


def test_node_that_is_missing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="No such file"):
        block_device_number(str(tmp_path / "vda"))


def test_host_that_does_not_list_its_disks_is_told_what_helps(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match=r"/block: No such file .* mount sysfs"):
        Devices(tmp_path, number_of).resolve(Limits(io_max_wiops=(DeviceLimit("", 5),)))
