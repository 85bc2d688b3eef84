"""Limits on disk I/O hold, measured with direct I/O on the scratch disk."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import DISK, MIB, measured, within
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = Path("/sys/block/vda/queue")
READ = ("dd", f"if={DISK}", "of=/dev/null", "iflag=direct")
WRITE = ("dd", "if=/dev/zero", f"of={DISK}", "oflag=direct")


def without_end(command: tuple[str, ...], size: str, *, times: int = 1) -> tuple[str, ...]:
    """Return a command that does I/O in requests of `size`, as so many processes at a time."""
    one = f"while :; do {' '.join(command)} bs={size} 2>/dev/null; done"
    return ("sh", "-c", " & ".join([one] * times))


def io_total(cgroup: Path, key: str) -> int:
    """Return what a cgroup has done to all disks together, by io.stat."""
    words = (cgroup / "io.stat").read_text(encoding="ascii").split()
    return sum(int(word.partition("=")[2]) for word in words if word.startswith(f"{key}="))


@dataclass(frozen=True)
class Rate:
    """A limit of io.max, and a command that would go beyond it."""

    limit: str
    command: tuple[str, ...]
    counts: str
    """The key of io.stat that says what the job has done."""
    size: str
    """Of a request, such that the limit on bytes is no limit on operations, or the opposite."""
    value: int
    device: str

    def shown(self, rate: float) -> str:
        """Return a rate with its unit."""
        if self.counts.endswith("bytes"):
            return f"{rate / MIB:.2f} MiB/s"
        return f"{rate:.0f} a second"


RATES = (
    Rate("io_max_rbps", READ, "rbytes", "64K", 4 * MIB, DISK),
    Rate("io_max_wbps", WRITE, "wbytes", "64K", 4 * MIB, ""),
    Rate("io_max_riops", READ, "rios", "4K", 200, DISK),
    Rate("io_max_wiops", WRITE, "wios", "4K", 200, ""),
)


@pytest.mark.parametrize(
    "rate",
    [pytest.param(rate, marks=pytest.mark.proves(rate.limit), id=rate.limit) for rate in RATES],
)
async def test_io_max_bounds_the_rate(rate, jobs, figures):
    async def found(limits: pb.Limits | None, seconds: float) -> float:
        cgroup = jobs.cgroup(await jobs.start(*without_end(rate.command, rate.size), limits=limits))
        await until(lambda: io_total(cgroup, rate.counts) > 0, "the job was under way")
        before, began = io_total(cgroup, rate.counts), time.monotonic()
        await until(lambda: time.monotonic() >= began + seconds, "time has passed")
        after, ended = io_total(cgroup, rate.counts), time.monotonic()
        await jobs.close()
        return (after - before) / (ended - began)

    async def limited() -> float:
        device = pb.DeviceLimit(device=rate.device, value=rate.value)
        return await found(pb.Limits(**{rate.limit: [device]}), 3)

    result = await measured(limited, lambda rate_: within(rate_, rate.value, 0.15), rate.shown)
    unlimited = await found(None, 0.5)

    figures(
        rate.limit,
        "io.max",
        asked=f"{rate.shown(rate.value)} on {rate.device or 'all disks'}",
        measured=f"{rate.shown(result.value)}; without: {rate.shown(unlimited)}{result.remark}",
        holds=result.holds,
    )
    assert result.holds
    assert unlimited > 2 * rate.value


# Weights: the kernel has two files, and each works only if the machine is set up for it


@pytest.fixture
def iocost(hierarchy: Path) -> Iterator[None]:
    """Let io.weight work: a disk that by its cost model reads 8 MiB a second."""
    device = Path("/sys/block/vda/dev").read_text(encoding="ascii").strip()
    qos = hierarchy / "io.cost.qos"
    cost = "rbps=8388608 rseqiops=2000 rrandiops=2000 wbps=8388608 wseqiops=2000 wrandiops=2000"
    (hierarchy / "io.cost.model").write_text(f"{device} ctrl=user model=linear {cost}")
    # The rate of the model, whatever the latencies are.
    qos.write_text(f"{device} enable=1 ctrl=user rpct=0 wpct=0 min=100 max=100")
    yield
    qos.write_text(f"{device} enable=0")
    (hierarchy / "io.cost.model").write_text(f"{device} ctrl=auto")


@pytest.fixture
def bfq() -> Iterator[None]:
    """Let io.bfq.weight work: the BFQ scheduler, for readers that an emulated CPU slows down.

    It gives weights up for throughput where it can, prefers new processes, and takes the disk away
    from a process that lets it wait for 8 ms.
    """
    subprocess.run(["modprobe", "bfq"], check=True)
    (QUEUE / "scheduler").write_text("bfq")
    settings = {"low_latency": "0", "strict_guarantees": "1", "slice_idle_us": "100000"}
    for name, setting in settings.items():
        (QUEUE / "iosched" / name).write_text(setting)
    yield
    (QUEUE / "scheduler").write_text("none")
    subprocess.run(["modprobe", "-r", "bfq"], check=True)  # With it goes the file.


@dataclass(frozen=True)
class Sharer:
    """One of the two ways in which kernels share out a disk, and how to measure it."""

    file: str
    heavy: int
    """The io_weight of the job that is to get four times as much as the one with 100."""
    tolerance: float
    readers: int
    """How many processes of each job read at a time."""
    amount: int
    """How many bytes both jobs read in a few seconds."""


# iocost counts what each request costs. For that both jobs must have one waiting at any time.
IOCOST = Sharer("io.weight", heavy=400, tolerance=0.15, readers=3, amount=32 * MIB)
# BFQ lets one process at a time have the disk, for a budget's worth, and idles meanwhile. Where the
# CPU is slower than the disk the shares are rough. 3400 of 10000 is 400 in its range of 1000.
BFQ = Sharer("io.bfq.weight", heavy=3400, tolerance=0.5, readers=1, amount=384 * MIB)


@pytest.mark.parametrize(
    ("scheduler", "way"),
    [
        pytest.param(scheduler, way, marks=pytest.mark.proves("io_weight", way.file), id=scheduler)
        for scheduler, way in (("iocost", IOCOST), ("bfq", BFQ))
    ],
)
async def test_two_reading_jobs_share_a_disk_by_their_weights(
    scheduler, way, request, jobs, figures
):
    request.getfixturevalue(scheduler)
    command = without_end(READ, "64K", times=way.readers)

    async def ratio() -> float:
        weights = [pb.Limits(io_weight=weight) for weight in (100, way.heavy)]
        cgroups = [jobs.cgroup(await jobs.start(*command, limits=given)) for given in weights]

        def done() -> list[int]:
            return [io_total(cgroup, "rbytes") for cgroup in cgroups]

        await until(lambda: min(done()) >= MIB, "both jobs were under way")
        before = done()
        await until(lambda: sum(done()) - sum(before) >= way.amount, "enough was read")
        after = done()
        await jobs.close()
        return (after[1] - before[1]) / (after[0] - before[0])

    def shown(ratio: float) -> str:
        return f"1 : {ratio:.2f}"

    result = await measured(ratio, lambda ratio: within(ratio, 4, way.tolerance), shown)

    figures(
        "io_weight",
        way.file,
        asked=f"100 : {way.heavy}, which is 1 : 4 (± {way.tolerance:.0%}), with {scheduler}",
        measured=shown(result.value) + result.remark,
        holds=result.holds,
    )
    assert result.holds


async def test_weight_that_no_disk_heeds_is_said_when_a_job_is_started_and_changed(client, jobs):
    job_id = await jobs.start("sleep", "1000", limits=pb.Limits(io_weight=200))
    started = (await client.status(job_id)).job

    changed = await client.update_limits(job_id, pb.Limits(io_weight=300))

    for warnings in (started.warnings, changed.warnings):
        (warning,) = warnings
        assert warning.startswith("io_weight has no effect: no disk has the scheduler bfq")


@pytest.mark.parametrize("scheduler", ["iocost", "bfq"])
async def test_weight_that_a_disk_heeds_comes_without_a_warning(scheduler, request, client, jobs):
    request.getfixturevalue(scheduler)
    job_id = await jobs.start("sleep", "1000", limits=pb.Limits(io_weight=200))

    assert not (await client.status(job_id)).job.warnings
    await jobs.close()
