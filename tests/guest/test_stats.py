"""What a job uses, on a kernel that reports all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SAMPLES = 40
"""How many samples a test waits for at most: 20 s, in which one job shows all it can."""
HOLDS = (
    "import sys, time; held = bytearray(48 << 20); "
    "open('/run/jobworker-stats', 'wb').write(b'x' * (4 << 20)); "
    "print('ready', flush=True); time.sleep(1000)"
)


async def ready(client, job_id: str) -> None:
    async for message in client.output(job_id, tail=True):
        if message.output:
            return


async def sample(client, job_id: str) -> pb.StatsResponse:
    (only,) = [each async for each in client.stats(job_id)]
    return only


async def samples(client, job_id: str) -> AsyncIterator[pb.StatsResponse]:
    """Yield what a job uses, twice a second, SAMPLES times at most."""
    taken = 0
    async for each in client.stats(job_id, follow=True, interval=0.5):
        yield each
        if (taken := taken + 1) == SAMPLES:
            return


async def test_a_sample_says_what_the_job_has_now(client, jobs):
    job_id = await jobs.start("python3", "-c", HOLDS)
    await ready(client, job_id)

    now = await sample(client, job_id)

    assert 48 * MIB < now.memory_current < 128 * MIB
    assert now.usage.memory_peak >= now.memory_current
    assert now.pids_current == 1
    assert now.HasField("memory_swap_current")
    assert now.usage.cpu_user_us > 0


async def test_the_final_usage_has_every_figure_that_this_kernel_knows(client, jobs):
    job_id = await jobs.start("sleep", "1000")
    newer = {"memory_swap_peak": "memory.swap.peak"}  # Linux 6.5
    missing = {name for name, file in newer.items() if not (jobs.cgroup(job_id) / file).exists()}

    await client.stop(job_id)
    job = await jobs.end(job_id)

    known = {field.name for field, _ in job.usage.ListFields()}
    assert known == {field.name for field in pb.Usage.DESCRIPTOR.fields} - missing


async def test_time_that_a_quota_took_is_counted(client, jobs):
    quota = pb.CpuMax(quota_us=10_000, period_us=100_000)
    script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done"

    job = await jobs.run("sh", "-c", script, limits=pb.Limits(cpu_max=quota))

    assert job.usage.cpu_throttled_periods > 0
    assert job.usage.cpu_throttled_us > 50_000


async def test_memory_high_is_counted_each_time_it_holds_a_job_back(client, jobs):
    job_id = await jobs.start("python3", "-c", HOLDS, limits=pb.Limits(memory_high=24 * MIB))
    events = 0
    async for each in samples(client, job_id):
        if events := each.usage.memory_high_events:
            break

    assert events > 0


async def test_direct_writes_are_counted_by_bytes_and_operations(client, jobs):
    command = "dd if=/dev/zero of=/dev/vda bs=64k count=32 oflag=direct"

    job = await jobs.run("sh", "-c", command)

    assert job.usage.io_write_bytes == 32 * 64 * 1024
    assert job.usage.io_write_operations == 32
    assert job.usage.io_read_bytes < MIB


async def test_a_paused_job_uses_no_cpu_time(client, jobs):
    job_id = await jobs.start("sh", "-c", "while :; do :; done")
    await client.pause(job_id)
    used = []
    async for each in client.stats(job_id, follow=True, interval=1):
        assert each.paused
        used.append(each.usage.cpu_user_us + each.usage.cpu_system_us)
        if len(used) == 3:
            break
    await client.resume(job_id)
    later = 0
    async for each in samples(client, job_id):
        later = each.usage.cpu_user_us + each.usage.cpu_system_us
        if later > used[-1]:
            break

    assert used[0] == used[-1] < later
