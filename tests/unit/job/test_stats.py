"""Samples of what a job uses, in the fake tree."""

import asyncio
import errno
from contextlib import aclosing
from dataclasses import replace

import pytest

from jobworker.cgroups import Cgroup
from jobworker.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from jobworker.job import Job, JobRecord, JobSpec, JobStatus, Reason, State, stats
from jobworker.testing import FakeCgroupTree
from tests.support.waiting import PATIENCE

PATH = "/cgroup2/job"
RUNNING = JobRecord(
    id="job",
    owner="user_alpha",
    spec=JobSpec(command="true"),
    created_at=1.0,
    status=JobStatus(State.RUNNING),
    started_at=1.0,
)
ENDED = replace(
    RUNNING,
    status=JobStatus(State.EXITED, exit_code=3, reason=Reason.EXITED),
    ended_at=7.0,
    output_size=0,
    usage={"cpu_user_us": 99},
)


class Nobody:
    """Whom the end of a job would wake."""

    def wake(self, job_id):
        pass


@pytest.fixture
def tree():
    tree = FakeCgroupTree(mounted_at="/cgroup2")
    tree.write("/cgroup2/cgroup.subtree_control", "+cpu +memory +pids")
    tree.mkdir(PATH)
    return tree


@pytest.fixture
def job(tree, tmp_path):
    return made(tree, tmp_path, RUNNING)


def made(tree, tmp_path, record):
    return Job(record, log_dir=tmp_path, watcher=Nobody(), cgroup=Cgroup(PATH, tree.files))


async def test_a_sample_of_a_running_job(tree, job):
    tree.set(f"{PATH}/cpu.stat", "usage_usec 5\nuser_usec 2\nsystem_usec 3\n")
    tree.set(f"{PATH}/memory.current", "8192\n")
    tree.set(f"{PATH}/pids.current", "4\n")
    sample = await job.sample()
    assert sample.usage["cpu_user_us"] == 2
    assert sample.current == {"memory_current": 8192, "memory_swap_current": 0, "pids_current": 4}
    assert sample.status is RUNNING.status
    assert not sample.paused


async def test_what_the_kernel_does_not_report_is_absent(tmp_path):
    tree = FakeCgroupTree((), mounted_at="/cgroup2")
    tree.mkdir(PATH)
    sample = await made(tree, tmp_path, RUNNING).sample()
    assert sample.current == {}
    assert not {"memory_peak", "pids_peak", "io_read_bytes", "oom_kills"} & sample.usage.keys()


async def test_a_sample_says_whether_the_job_is_paused(tree, job):
    assert not job.paused
    tree.write(f"{PATH}/cgroup.freeze", "1")
    assert (await job.sample()).paused
    assert job.paused


async def test_a_finished_job_is_not_paused_and_its_sample_is_its_end(tree, tmp_path):
    tree.write(f"{PATH}/cgroup.freeze", "1")
    job = made(tree, tmp_path, ENDED)
    assert await job.sample() == stats.Sample(
        time=7.0, status=ENDED.status, usage={"cpu_user_us": 99}
    )
    assert not job.paused


async def test_a_pending_job_has_used_nothing_yet(tree, tmp_path):
    tree.rmdir(PATH)
    pending = replace(RUNNING, status=JobStatus(State.PENDING), started_at=None)
    sample = await made(tree, tmp_path, pending).sample()
    assert (sample.usage, sample.current, sample.status.state) == ({}, {}, State.PENDING)


@pytest.mark.parametrize("gone_before", ["cpu.stat", "memory.current", "cgroup.events"])
async def test_a_sample_that_the_end_overtakes_is_the_end(tree, job, gone_before):
    read = tree.read

    def remove_and_read(path):
        if path.endswith(gone_before) and tree.exists(PATH):
            tree.rmdir(PATH)
        return read(path)

    tree.read = remove_and_read
    sampling = asyncio.create_task(job.sample())
    await asyncio.sleep(0)
    assert not sampling.done()
    job.publish(ENDED)
    assert (await asyncio.wait_for(sampling, PATIENCE)).status is ENDED.status


async def test_figures_that_cannot_be_read_are_told(tree, job):
    tree.fail("*/memory.current", errno.EIO, "read")
    with pytest.raises(FailedPrecondition, match=r"cannot read what job job uses: .*Input/output"):
        await job.sample()


async def test_want_of_descriptors_is_told(tree, job):
    tree.fail("*/cpu.stat", errno.EMFILE, "read")
    with pytest.raises(ResourceExhausted, match="cannot read what job job uses"):
        await job.sample()


async def test_figures_that_are_not_understood_are_told(tree, job):
    tree.set(f"{PATH}/pids.current", "a lot\n")
    with pytest.raises(FailedPrecondition, match="a lot"):
        await job.sample()


async def test_samples_go_on_to_the_end_and_the_last_is_the_end(job, monkeypatch):
    monkeypatch.setattr(stats, "SHORTEST_INTERVAL", 0.001)
    states = []
    async with asyncio.timeout(PATIENCE), aclosing(job.stream_samples(0.001)) as samples:
        async for sample in samples:
            states.append(sample.status.state)
            if len(states) == 3:
                job.publish(ENDED)
    assert states == [*[State.RUNNING] * 3, State.EXITED]


async def test_the_end_is_not_waited_for_until_the_next_sample_is_due(job):
    async with asyncio.timeout(PATIENCE), aclosing(job.stream_samples(3600)) as samples:
        await anext(samples)
        ended = asyncio.create_task(anext(samples))
        await asyncio.sleep(0)
        job.publish(ENDED)
        assert (await ended).usage == ENDED.usage


async def test_a_finished_job_has_one_sample(tree, tmp_path):
    job = made(tree, tmp_path, ENDED)
    assert [sample.time async for sample in job.stream_samples()] == [7.0]


@pytest.mark.parametrize("interval", [0, 0.0999, -1, float("nan"), 1e30])
def test_an_interval_that_cannot_be_is_refused_at_once(interval):
    with pytest.raises(InvalidArgument, match="interval"):
        stats.check_interval(interval)
