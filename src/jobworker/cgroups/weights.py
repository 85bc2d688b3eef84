"""Whether weights of disk I/O have an effect: whether any disk is set up to be shared by them.

A kernel takes a weight whether or not a disk is. Disks are shared by io.weight if the cost model is
enabled for them (io.cost.qos of the hierarchy's root; Linux 5.4), and by io.bfq.weight if BFQ is
their scheduler ("IO Interface Files" in cgroup-v2.rst, and bfq-iosched.rst).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker.cgroups import parse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobworker.cgroups.devices import Devices
    from jobworker.cgroups.files import Files
    from jobworker.cgroups.mounts import Mount

_BFQ: Final = "modprobe bfq; echo bfq > /sys/block/DISK/queue/scheduler"


def obstacle(mounts: Iterable[Mount], files: Files, devices: Devices) -> str:
    """Return that weights have no effect on this host, why, and what to do; empty if they have one.

    The sentence lacks its subject, which has one name in the API and another one in the programs.
    Raises OSError or MalformedText.
    """
    if devices.uses_scheduler("bfq"):
        return ""
    root = _hierarchy_root(mounts, files)
    if root is None:
        return (
            "may have no effect: no disk has the scheduler bfq, and io.cost.qos of the hierarchy's "
            f"root cannot be seen from here; to be sure, on the host: {_BFQ}"
        )
    qos = f"{root}/io.cost.qos"
    if not files.exists(qos):
        return (
            "has no effect: no disk has the scheduler bfq, and this kernel has no io.cost.qos; "
            f"before the job is started: {_BFQ}"
        )
    disks = parse.nested_keyed(files.read(qos), qos)
    if any(disk.get("enable") == "1" for disk in disks.values()):
        return ""
    return (
        "has no effect: no disk has the scheduler bfq, and none is enabled in io.cost.qos; before "
        f"the job is started: {_BFQ}; or echo 'MAJOR:MINOR enable=1' > {qos}"
    )


def _hierarchy_root(mounts: Iterable[Mount], files: Files) -> str | None:
    """Return where the root of the whole hierarchy is mounted, if this process can see it.

    That of a cgroup namespace looks the same in the mount table, but has a type.
    """
    points = (mount.point for mount in mounts if mount.kind == "cgroup2" and mount.root == "/")
    return next((point for point in points if not files.exists(f"{point}/cgroup.type")), None)
