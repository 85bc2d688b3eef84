"""Limits of a running job, changed on a kernel that has them all: they hold, or nothing changes."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from jobworker.cgroups import MAX, CpuMax, DeviceLimit, Limits, Service
from jobworker.cgroups.files import Files
from jobworker.cgroups.limits import TABLE
from jobworker.errors import ControllerUnavailable, LimitNotApplied
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import DISK, MIB, device_number, one_of_each
from tests.support.jobs import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY = ("sh", "-c", "while :; do :; done")
TAKEN_AWAY = {
    "memory_min": Limits(memory_min=0),
    "memory_low": Limits(memory_low=0),
    "memory_oom_group": Limits(memory_oom_group=False),
    "cpu_weight": Limits(cpu_weight=100),
    "cpu_max": Limits(cpu_max=CpuMax(MAX)),
    "cpu_burst_max": Limits(cpu_max=CpuMax(MAX), cpu_burst_max=0),
    "io_weight": Limits(io_weight=100),
}
"""Limit → what leaves the kernel's default in force, where it is not MAX alone."""


class Refusing(Files):
    """The kernel's files, where a write to one of them fails."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, path: str, text: str) -> None:
        if path.endswith(f"/{self.name}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        super().write(path, text)


def taken_away(limit: str) -> Limits:
    if limit in TAKEN_AWAY:
        return TAKEN_AWAY[limit]
    if limit.startswith("io_max"):
        return Limits(**{limit: (DeviceLimit(DISK, MAX),)})
    return Limits(**{limit: MAX})


@pytest.fixture
def service(cgroup_root: Path) -> Service:
    service = Service(cgroup_root)
    service.setup()
    return service


@pytest.mark.parametrize("limit", one_of_each(DISK))
def test_every_limit_can_be_set_and_taken_away(limit: str, service: Service):
    job_id = str(uuid.uuid4())
    cgroup = service.create_cgroup(job_id)
    wanted = one_of_each(DISK)[limit]
    if not any(Path(cgroup.path, row.file).exists() for row in TABLE if row.limit == limit):
        with pytest.raises(ControllerUnavailable):
            service.update_limits(job_id, wanted)
        return

    assert service.update_limits(job_id, wanted).limits == one_of_each(device_number(DISK))[limit]
    assert service.update_limits(job_id, taken_away(limit)).limits == Limits()


@pytest.mark.parametrize("refused", ["memory.high", "cpu.weight", "pids.max", "memory.max"])
def test_whichever_of_four_writes_fails_nothing_is_changed(refused: str, cgroup_root: Path):
    service = Service(cgroup_root)
    service.setup()
    job_id = str(uuid.uuid4())
    before = Limits(memory_high=64 * MIB, memory_max=128 * MIB, cpu_weight=300, pids_max=64)
    cgroup = service.create_cgroup(job_id, before)
    wanted = Limits(memory_high=32 * MIB, memory_max=96 * MIB, cpu_weight=50, pids_max=32)

    with pytest.raises(LimitNotApplied, match=f"cannot apply {refused} to job {job_id}"):
        Service(cgroup_root, files=Refusing(refused)).update_limits(job_id, wanted)

    assert cgroup.limits() == before


@pytest.mark.parametrize(
    ("before", "after"),
    [((50_000, 20_000), (10_000, 5_000)), ((10_000, 5_000), (50_000, 20_000))],
)
def test_quota_and_burst_follow_each_other_in_both_directions(before, after, service: Service):
    job_id = str(uuid.uuid4())
    service.create_cgroup(job_id, pair(before))

    assert service.update_limits(job_id, pair(after)).limits == pair(after)


def pair(quota_and_burst: tuple[int, int]) -> Limits:
    quota, burst = quota_and_burst
    return Limits(cpu_max=CpuMax(quota), cpu_burst_max=burst)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


async def share(client, job_id: str) -> float:
    """Measure which part of one CPU a job uses."""
    samples = []
    async for sample in client.stats(job_id, follow=True, interval=2.5):
        samples.append(sample)
        if len(samples) == 2:
            break
    first, last = samples
    used = [each.usage.cpu_user_us + each.usage.cpu_system_us for each in samples]
    nanoseconds = last.time.ToNanoseconds() - first.time.ToNanoseconds()
    return (used[1] - used[0]) * 1000 / nanoseconds


async def test_a_changed_quota_holds_and_its_end_too(client, jobs, figures):
    job_id = await jobs.start(*BUSY)
    quota = pb.CpuMax(quota_us=20_000, period_us=100_000)

    await client.update_limits(job_id, pb.Limits(cpu_max=quota))
    limited = await share(client, job_id)
    await client.update_limits(job_id, pb.Limits(cpu_max=pb.CpuMax(quota_us=MAX)))
    free = await share(client, job_id)

    holds = abs(limited - 0.2) <= 0.02 and free > 0.5
    figures(
        "cpu_max",
        "cpu.max",
        asked="0.2 CPUs while it runs, then max",
        measured=f"{limited:.3f} CPUs, then {free:.2f}",
        holds=holds,
    )
    assert holds


async def test_memory_max_below_what_a_job_has_ends_it_for_want_of_memory(client, jobs, figures):
    program = (
        "import time; held = bytearray(64 << 20); print('ready', flush=True); time.sleep(1000)"
    )
    job_id = await jobs.start("python3", "-c", program)
    async for message in client.output(job_id, tail=True):
        if message.output:
            break

    # The job may have ended for it before that could be recorded.
    with contextlib.suppress(grpc.aio.AioRpcError):
        await client.update_limits(job_id, pb.Limits(memory_max=16 * MIB))
    job = await jobs.end(job_id)

    holds = job.status.reason == pb.REASON_OUT_OF_MEMORY
    figures(
        "memory_max",
        "memory.max",
        asked="16 MiB for a job that has 64 MiB",
        measured=f"{(kills := job.usage.oom_kills)} process{'' if kills == 1 else 'es'} killed",
        holds=holds,
    )
    assert holds


async def test_a_changed_pids_max_holds(client, jobs, figures, gate):
    forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait"
    job_id = await jobs.start("sh", "-c", f"{gate.wait}; {forks}")
    await client.update_limits(job_id, pb.Limits(pids_max=5))
    gate.open()
    job = await jobs.end(job_id)  # A shell that cannot fork gives up.

    holds = job.usage.pids_peak <= 5 and job.usage.pids_max_events > 0
    figures(
        "pids_max",
        "pids.max",
        asked="5 while it runs",
        measured=f"{job.usage.pids_peak} at most, {job.usage.pids_max_events} forks refused",
        holds=holds,
    )
    assert holds


async def test_changed_limits_are_those_of_the_job(client, jobs):
    job_id = await jobs.start("sleep", "1000")

    answer = await client.update_limits(job_id, pb.Limits(memory_high=32 * MIB, pids_max=9))

    assert answer.limits == pb.Limits(memory_high=32 * MIB, pids_max=9)
    assert len(answer.warnings) == 1
    job = (await client.status(job_id)).job
    assert (job.limits, job.warnings) == (answer.limits, answer.warnings)
