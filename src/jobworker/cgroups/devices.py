"""Block devices: which disks there are, and which number a name means. The only reader of sysfs.

io.max takes the number of a whole device and refuses partitions with ENODEV (blkg_conf_prep in
block/blk-cgroup.c). Device mapper, loop and other virtual devices are whole devices and accepted.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.cgroups.limits import DeviceLimit, Limits
from jobworker.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBER: Final = re.compile(r"(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,8})")


def block_device_number(path: str) -> str:
    """Return the MAJOR:MINOR of a block device's node.

    Raises ValueError, saying what is there instead.
    """
    try:
        info = Path(path).stat()
    except OSError as error:
        raise ValueError(f"there is no device {path}: {error.strerror}") from error
    if not stat.S_ISBLK(info.st_mode):
        raise ValueError(f"{path} is not a block device")
    return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"


class Devices:
    """The block devices of this host, as sysfs lists them."""

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        number_of: Callable[[str], str] = block_device_number,
    ) -> None:
        self._sysfs = sysfs
        self._number_of = number_of

    def resolve(self, limits: Limits) -> Limits:
        """Return the limits with every device named as MAJOR:MINOR of a whole device.

        A device named by itself goes before "all physical disks". Raises InvalidArgument for an
        unknown device, or for two names of one.
        """
        return replace(
            limits,
            io_max_rbps=self._resolve("io_max_rbps", limits.io_max_rbps),
            io_max_wbps=self._resolve("io_max_wbps", limits.io_max_wbps),
            io_max_riops=self._resolve("io_max_riops", limits.io_max_riops),
            io_max_wiops=self._resolve("io_max_wiops", limits.io_max_wiops),
        )

    def physical_disks(self) -> list[str]:
        """Return the MAJOR:MINOR of all disks that hardware, real or virtual, stands behind.

        These have a ``device`` in /sys/block; loop, ram, zram, md and device mapper have none.
        The single paths of a multipath NVMe disk are hidden and have no number. Raises
        FailedPrecondition if there is no /sys/block.
        """
        numbers = []
        block = self._sysfs / "block"
        try:
            disks = sorted(block.iterdir())
        except OSError as error:
            raise FailedPrecondition(
                f"cannot find out which disks there are: {block}: {error.strerror}; name the "
                "devices to limit as MAJOR:MINOR or by their nodes, or mount sysfs"
            ) from error
        for disk in disks:
            number = disk / "dev"
            if (disk / "device").exists() and number.exists():
                numbers.append(number.read_text().strip())
        return numbers

    def uses_scheduler(self, name: str) -> bool:
        """Tell whether any disk has the I/O scheduler (the one in brackets; Linux's blk-mq)."""
        for file in (self._sysfs / "block").glob("*/queue/scheduler"):
            # A disk may be taken away meanwhile.
            with contextlib.suppress(OSError):
                if f"[{name}]" in file.read_text().split():
                    return True
        return False

    def whole_device(self, name: str) -> str:
        """Return the MAJOR:MINOR of the disk that a node, a partition or a number means.

        Raises ValueError if there is no such device.
        """
        if _NUMBER.fullmatch(name):
            number = name
        elif name.startswith("/"):
            number = self._number_of(name)
        else:
            raise ValueError(f"{name!r} is neither an absolute path nor MAJOR:MINOR")
        entry = self._sysfs / "dev" / "block" / number
        if not entry.exists():
            raise ValueError(f"this host has no block device {name}")
        if (entry / "partition").exists():
            # A partition's directory is inside that of its disk.
            return (entry.resolve().parent / "dev").read_text().strip()
        return number

    def _resolve(self, name: str, limits: tuple[DeviceLimit, ...]) -> tuple[DeviceLimit, ...]:
        field = f"limits.{name}"
        named: dict[str, DeviceLimit] = {}
        for limit in limits:
            if not limit.device:
                continue
            try:
                number = self.whole_device(limit.device)
            except ValueError as error:
                raise InvalidArgument(field, str(error)) from error
            if number in named:
                raise InvalidArgument(field, f"{limit.device} is a disk that is named twice")
            named[number] = DeviceLimit(number, limit.value)
        for limit in limits:
            if limit.device:
                continue
            disks = self.physical_disks()
            if not disks:
                raise InvalidArgument(field, "this host has no physical disk: name a device")
            for number in disks:
                named.setdefault(number, DeviceLimit(number, limit.value))
        return tuple(named[number] for number in sorted(named))
