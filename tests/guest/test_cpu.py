"""Limits on CPU time hold, by the guest kernel's own account of it."""

from __future__ import annotations

import time

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import counters, cpu_seconds, measured, within
from tests.support.waiting import until

FOREVER = "while :; do :; done"
PERIOD = 100_000


def busy_on(cpu: int) -> tuple[str, ...]:
    """Return a command that never rests, on one CPU."""
    return ("taskset", "--cpu-list", str(cpu), "sh", "-c", FOREVER)


@pytest.mark.proves("cpu_max")
async def test_cpu_max_bounds_cpu_time_over_wall_time(jobs, figures):
    quota = 0.2
    limits = pb.Limits(cpu_max=pb.CpuMax(quota_us=int(quota * PERIOD), period_us=PERIOD))

    async def shares() -> list[float]:
        busy = [await jobs.start("sh", "-c", FOREVER, limits=given) for given in (limits, None)]
        await until(lambda: min(map(used, busy)) > 0.1, "both jobs were under way")
        before, began = list(map(used, busy)), time.monotonic()
        await until(lambda: used(busy[1]) >= before[1] + 3, "the one without had 3 s of CPU time")
        after, ended = list(map(used, busy)), time.monotonic()
        await jobs.close()
        return [(b - a) / (ended - began) for a, b in zip(before, after, strict=True)]

    def used(job_id: str) -> float:
        return cpu_seconds(jobs.cgroup(job_id))

    def shown(shares: list[float]) -> str:
        return f"{shares[0]:.3f} CPUs; without: {shares[1]:.2f}"

    def holds(shares: list[float]) -> bool:
        return within(shares[0], quota, 0.1) and shares[1] > 2 * quota

    result = await measured(shares, holds, shown)

    figures(
        "cpu_max",
        "cpu.max",
        asked=f"{quota} CPUs",
        measured=shown(result.value) + result.remark,
        holds=result.holds,
    )
    assert result.holds


@pytest.mark.proves("cpu_weight")
async def test_two_busy_jobs_share_a_cpu_by_their_weights(jobs, figures):
    async def ratio() -> float:
        light = await jobs.start(*busy_on(1), limits=pb.Limits(cpu_weight=100))
        heavy = await jobs.start(*busy_on(1), limits=pb.Limits(cpu_weight=400))
        cgroups = [jobs.cgroup(light), jobs.cgroup(heavy)]

        def used() -> list[float]:
            return [cpu_seconds(cgroup) for cgroup in cgroups]

        await until(lambda: min(used()) > 0.3, "both jobs were under way")
        before = used()
        await until(lambda: sum(used()) - sum(before) >= 5, "5 s of CPU time were shared out")
        after = used()
        await jobs.close()
        return (after[1] - before[1]) / (after[0] - before[0])

    def shown(ratio: float) -> str:
        return f"1 : {ratio:.2f}"

    result = await measured(ratio, lambda ratio: within(ratio, 4, 0.15), shown)

    figures(
        "cpu_weight",
        "cpu.weight",
        asked="100 : 400 on one CPU",
        measured=shown(result.value) + result.remark,
        holds=result.holds,
    )
    assert result.holds


@pytest.mark.proves("cpu_burst_max")
async def test_burst_lets_a_job_use_the_quota_that_it_has_saved(jobs, figures):
    quota, burst = 20_000, 20_000
    rests_then_works = (
        "while :; do sleep 0.3; i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done; done"
    )

    def limits(**more: int) -> pb.Limits:
        return pb.Limits(cpu_max=pb.CpuMax(quota_us=quota, period_us=PERIOD), **more)

    with_it = await jobs.start("sh", "-c", rests_then_works, limits=limits(cpu_burst_max=burst))
    without = await jobs.start("sh", "-c", rests_then_works, limits=limits())

    def stat(job_id: str) -> dict[str, int]:
        return counters(jobs.cgroup(job_id) / "cpu.stat")

    await until(
        lambda: (
            stat(without)["nr_throttled"] >= 5
            and (stat(with_it)["nr_bursts"] >= 5 or stat(with_it)["nr_throttled"] >= 10)
        ),
        "both jobs wanted more than their quota",
    )
    saved, plain = stat(with_it), stat(without)

    bursts, more = saved["nr_bursts"], saved["burst_usec"]
    holds = 0 < more <= 1.1 * burst * bursts and plain["nr_bursts"] == 0
    figures(
        "cpu_burst_max",
        "cpu.max.burst",
        asked="20 ms beside a quota of 20 ms / 100 ms",
        measured=f"{bursts} bursts, {more / 1000:.1f} ms together; without: {plain['nr_bursts']}",
        holds=holds,
    )
    assert holds
