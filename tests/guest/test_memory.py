"""Limits on memory hold, and a job that breaks them harms nobody else."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import DISK, MIB, counters, number
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.guest.conftest import Jobs

BUSYBOX = "/run/guest/bin/busybox"


def allocates(mebibytes: int) -> str:
    """Return a command of the shell that needs so much memory at once."""
    return f"dd if=/dev/zero bs={mebibytes}M count=1 2>/dev/null"


def keeps(mebibytes: int) -> tuple[str, ...]:
    """Return a command that allocates so much memory and keeps it: nobody reads what it writes."""
    return ("sh", "-c", f"{allocates(mebibytes)} | sleep 1000")


def keeps_bit_by_bit(mebibytes: int) -> tuple[str, ...]:
    """Return a command that does so in many system calls: memory.high acts at the end of each."""
    count = mebibytes * MIB
    return ("sh", "-c", f"head -c {count} /dev/zero | tail -c {count} | sleep 1000")


def reads(mebibytes: int, *, skip: int = 0) -> str:
    """Return a command of the shell that fills so much page cache from the scratch disk."""
    return f"dd if={DISK} of=/dev/null bs=1M skip={skip} count={mebibytes} 2>/dev/null"


def mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


# The most that a job may have


@pytest.mark.proves("memory_max")
async def test_job_beyond_memory_max_is_killed_and_the_reason_is_said(jobs, figures):
    limit = 64 * MIB

    job = await jobs.run(
        "sh", "-c", f"exec {allocates(256)} >&2", limits=pb.Limits(memory_max=limit)
    )

    peak = job.usage.memory_peak
    holds = 0.9 * limit <= peak <= limit
    figures(
        "memory_max", "memory.max", asked="64 MiB", measured=f"{mib(peak)} at most", holds=holds
    )
    assert holds
    assert job.usage.oom_kills == 1
    assert job.status.reason == pb.REASON_OUT_OF_MEMORY
    assert job.status.signal == signal.SIGKILL


async def test_job_that_runs_out_of_memory_leaves_others_alone(jobs, server):
    neighbour = await jobs.start("sleep", "1000")

    await jobs.run("sh", "-c", allocates(256), limits=pb.Limits(memory_max=16 * MIB))

    assert "populated 1" in (jobs.cgroup(neighbour) / "cgroup.events").read_text()
    assert server.process.poll() is None


@pytest.mark.proves("memory_high")
async def test_job_above_memory_high_is_slowed_down_and_stays_alive(jobs, client, figures):
    limit = 32 * MIB
    limited = await jobs.start(*keeps_bit_by_bit(128), limits=pb.Limits(memory_high=limit))
    unlimited = await jobs.start(*keeps_bit_by_bit(128))

    def size(job_id: str) -> int:
        return number(jobs.cgroup(job_id) / "memory.current")

    await until(lambda: size(unlimited) >= 128 * MIB, "the job without a limit has what it wants")
    await until(lambda: size(limited) >= 0.9 * limit, "the other has reached its limit")
    current, times = size(limited), counters(jobs.cgroup(limited) / "memory.events")["high"]
    job = (await client.status(limited)).job

    alive = job.status.status == pb.STATUS_RUNNING
    holds = alive and times > 0 and current <= 1.15 * limit
    figures(
        "memory_high",
        "memory.high",
        asked="32 MiB of 128 MiB wanted",
        measured=f"{mib(current)}, {'alive' if alive else 'dead'}, slowed down {times} times; "
        f"without: {mib(size(unlimited))}",
        holds=holds,
    )
    assert holds
    assert any("memory_high without memory_max" in warning for warning in job.warnings)


@pytest.mark.proves("memory_high")
async def test_job_at_memory_high_goes_on_with_what_can_be_reclaimed(jobs):
    limit = 32 * MIB

    job = await jobs.run("sh", "-c", reads(128), limits=pb.Limits(memory_high=limit))

    assert job.status.exit_code == 0
    assert 0.9 * limit <= job.usage.memory_peak <= 1.15 * limit


# Protection


class Contest:
    """Two jobs with 40 MiB of page cache each, one of which is protected."""

    CACHE = 40

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._ids: list[str] = []

    async def start(self, limits: pb.Limits) -> None:
        """Start both; returns when they have filled the cache."""
        for number_, given in enumerate((limits, pb.Limits())):
            script = f"{reads(self.CACHE, skip=number_ * self.CACHE)}; sleep 1000"
            self._ids.append(await self._jobs.start("sh", "-c", script, limits=given))
        await until(lambda: min(self.sizes()) >= self.CACHE * MIB, "both caches were full")

    def sizes(self) -> tuple[int, int]:
        """Return what the protected and the other job have in memory."""
        protected, other = (number(self._jobs.cgroup(job) / "memory.current") for job in self._ids)
        return protected, other


@pytest.fixture
def contest(jobs: Jobs) -> Iterator[Contest]:
    """Two jobs that compete for memory."""
    with Path(DISK).open("rb"):  # What is cached of it goes when its last user closes it.
        yield Contest(jobs)


@pytest.fixture
def another_job(jobs: Jobs, server) -> Iterator[Callable[[], Awaitable[None]]]:
    """Pressure by a job that wants memory, where all jobs together have little."""
    limit = server.jobs_cgroup / "memory.max"

    async def press() -> None:
        limit.write_text(str(136 * MIB))
        presser = await jobs.start(*keeps(88))
        await until(
            lambda: number(jobs.cgroup(presser) / "memory.current") >= 88 * MIB,
            "the job got its memory at the expense of others",
        )

    yield press
    limit.write_text("max")


@pytest.fixture
def all_the_machine(hierarchy: Path, contest: Contest) -> Callable[[], Awaitable[None]]:
    """Pressure on the machine, as by programs that are no jobs, until somebody suffers."""

    async def press() -> None:
        # In steps: memory.low is protected as long as anything else is to be had.
        for _ in range(200):
            if min(contest.sizes()) < 0.45 * Contest.CACHE * MIB:
                return
            # memory.reclaim, Linux 5.19. EAGAIN: not as much was to be had.
            with contextlib.suppress(BlockingIOError):
                (hierarchy / "memory.reclaim").write_text("4M")
        pytest.fail("the kernel found other memory than that of jobs to take")

    return press


@pytest.mark.parametrize("pressure", ["another_job", "all_the_machine"])
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param("memory_min", marks=pytest.mark.proves("memory_min")),
        pytest.param("memory_low", marks=pytest.mark.proves("memory_low")),
    ],
)
async def test_protected_memory_survives_pressure(contest, limit, pressure, request, figures):
    await contest.start(pb.Limits(**{limit: 48 * MIB}))
    before, _ = contest.sizes()

    await request.getfixturevalue(pressure)()

    protected, other = contest.sizes()
    # The kernel calls memory.low a best effort.
    holds = protected >= 0.8 * before and other <= 0.5 * before
    figures(
        limit,
        limit.replace("_", "."),
        asked=f"48 MiB, {pressure.replace('_', ' ')} in need",
        measured=f"{mib(protected)} of {mib(before)} left; without: {mib(other)}",
        holds=holds,
    )
    assert holds


# Swap


@pytest.fixture
def swap() -> Iterator[None]:
    """A swap area of 128 MiB, in memory."""
    device = "/dev/ram0"
    subprocess.run(["modprobe", "brd", "rd_nr=1", f"rd_size={128 * 1024}"], check=True)
    subprocess.run([BUSYBOX, "mkswap", device], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([BUSYBOX, "swapon", device], check=True)
    yield
    subprocess.run([BUSYBOX, "swapoff", device], check=True)
    subprocess.run(["modprobe", "-r", "brd"], check=True)


@pytest.mark.proves("memory_swap_max")
async def test_memory_swap_max_bounds_what_is_swapped_out(swap, jobs, figures):
    limit, wanted = 16 * MIB, 96
    limits = pb.Limits(memory_high=32 * MIB)
    unlimited = await jobs.start(*keeps(wanted), limits=limits)
    limits.memory_swap_max = limit
    limited = await jobs.start(*keeps(wanted), limits=limits)

    def swapped(job_id: str) -> int:
        return number(jobs.cgroup(job_id) / "memory.swap.current")

    def refused(job_id: str) -> int:
        return counters(jobs.cgroup(job_id) / "memory.swap.events")["max"]

    await until(lambda: swapped(unlimited) > 2 * limit, "the job without a limit has swapped")
    await until(
        lambda: refused(limited) > 0 or swapped(limited) > 2 * limit, "the other wanted as much"
    )

    amount = swapped(limited)
    # The kernel gives swap to CPUs in clusters, and refuses before the last byte is used.
    holds = 0.75 * limit <= amount <= limit
    figures(
        "memory_swap_max",
        "memory.swap.max",
        asked="16 MiB",
        measured=f"{mib(amount)}; without: {mib(swapped(unlimited))}",
        holds=holds,
    )
    assert holds
    await jobs.close()


# Out of memory: one process, or all


@pytest.mark.proves("memory_oom_group")
async def test_oom_group_decides_whether_one_process_is_killed_or_the_whole_job(jobs, figures):
    script = f"{allocates(128)} >&2; echo survived"

    async def killed(*, group: bool) -> pb.Job:
        limits = pb.Limits(memory_max=32 * MIB, memory_oom_group=group)
        return await jobs.run("sh", "-c", script, limits=limits)

    whole, single = await killed(group=True), await killed(group=False)

    def shown(job: pb.Job) -> str:
        return "both are killed" if job.status.signal else "the child is killed"

    holds = (whole.status.signal, single.status.signal) == (signal.SIGKILL, 0)
    figures(
        "memory_oom_group",
        "memory.oom.group",
        asked="all of a shell and its child",
        measured=f"{shown(whole)}; without: {shown(single)}",
        holds=holds,
    )
    assert holds
    assert whole.usage.oom_kills >= 2
    assert single.usage.oom_kills == 1
    assert (whole.status.reason, whole.output_size) == (pb.REASON_OUT_OF_MEMORY, 0)
    assert (single.status.exit_code, single.output_size) == (0, len("survived\n"))
