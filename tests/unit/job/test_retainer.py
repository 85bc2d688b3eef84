"""Retention and limits on running jobs, on a fake kernel and a fake shim, with real files."""

import asyncio
import gc
import logging
import threading
import time
from dataclasses import replace

import pytest

from jobworker import output
from jobworker.errors import (
    CommandNotFound,
    ConfigError,
    FailedPrecondition,
    JobNotFound,
    ResourceExhausted,
    Unavailable,
)
from jobworker.job import JobSpec, Service, State, retainer
from jobworker.job import removal as removing
from jobworker.job.retention import KEEP_ALL, Retention
from jobworker.job.slots import RunningLimits
from jobworker.testing.shim import FakeShim
from tests.support.fake_host import FakeHost
from tests.support.waiting import PATIENCE, until

TRUE = JobSpec(command="true")
MEGABYTE = 1 << 20


def keep(**bounds):
    return Retention(**{"keep_for": None, "keep_jobs": None, "keep_bytes": None} | bounds)


class Host(FakeHost):
    def service(self, retention=KEEP_ALL, **limits):
        return super().service(retention=retention, running=RunningLimits(**limits))

    @property
    def removed(self):
        return [(job_id, user) for event, job_id, user in self.changes if event == "removed"]

    async def start(self, service, count, content=b""):
        """Start jobs that have written `content`."""
        jobs = [await service.start_job(TRUE, owner="alpha") for _ in range(count)]
        for job in jobs:
            (self.log_dir / job.id / "output").write_bytes(content)
        return jobs

    async def end(self, *jobs, size=0):
        """End jobs, each at a later time than the one before."""
        for job in jobs:
            self.shim.end(job.id, exit_code=0, output_size=size)
            await job.wait()

    async def ended(self, service, count, content=b""):
        jobs = await self.start(service, count, content)
        await self.end(*jobs, size=len(content))
        return jobs

    def kept(self):
        ids = {row for (row,) in self.registry("SELECT id FROM jobs")}
        if self.registry("SELECT * FROM removing"):
            return None
        return ids if ids == {path.name for path in self.log_dir.iterdir()} else None


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(retainer.Retainer.__init__, "__kwdefaults__", DEFAULTS)
    with FakeShim() as shim:
        yield Host(tmp_path, shim)


DEFAULTS = {**retainer.Retainer.__init__.__kwdefaults__, "settling": 0.0}
"""Without a pause between two looks: what is tested does not take a second each time."""


def ids(jobs):
    return {job.id for job in jobs}


async def test_what_is_too_many_goes_and_running_jobs_stay(host):
    async with host.service(keep(keep_jobs=2)) as service:
        jobs = await host.start(service, 5)
        running, ending = jobs[0], jobs[1:]
        await host.end(*ending)
        await until(lambda: host.kept() == ids([running, *ending[2:]]))
        assert [job_id for job_id, user in host.removed if user == ""] == [j.id for j in ending[:2]]
        with pytest.raises(JobNotFound):
            await service.fetch_job(ending[0].id)
        assert running.status.state is State.RUNNING


async def test_what_takes_too_much_disk_goes(host):
    async with host.service() as service:
        jobs = await host.ended(service, 4, b"x" * MEGABYTE)
    one = output.disk_usage(host.log_dir, jobs[0].id)
    async with host.service(keep(keep_bytes=2 * one + one // 2)):
        await until(lambda: host.kept() == ids(jobs[2:]))


async def test_the_disk_of_a_job_is_measured_after_its_end(host):
    async with host.service(keep(keep_bytes=1 << 40)) as service:
        (job,) = await host.ended(service, 1, b"x" * MEGABYTE)
        size = output.disk_usage(host.log_dir, job.id)
        await until(lambda: service._retainer._ended.totals().bytes == size)


async def test_what_is_too_old_goes_without_anything_else_happening(host):
    async with host.service(keep(keep_for=0.1)) as service:
        await host.ended(service, 2)
        await until(lambda: host.kept() == set())


async def test_what_is_not_too_old_stays(host):
    async with host.service(keep(keep_for=1e6)) as service:
        jobs = await host.ended(service, 2)
        assert await service._retainer._look() > 0
        assert host.kept() == ids(jobs)


async def test_more_than_a_batch_goes_at_the_start_of_a_service(host):
    async with host.service() as service:
        jobs = await host.ended(service, removing.BATCH + 3)
    async with host.service(keep(keep_jobs=1)):
        await until(lambda: host.kept() == ids(jobs[-1:]))


async def test_a_job_that_is_being_read_stays_until_its_reader_leaves(host):
    async with host.service(keep(keep_jobs=2)) as service:
        (job,) = await host.start(service, 1, b"content")
        with job.stream_output() as reader:
            await host.end(job, size=7)
            others = await host.ended(service, 3)
            await until(lambda: host.kept() == ids([job, *others[1:]]))
            assert [chunk.data async for chunk in reader] == [b"content"]
        await until(lambda: host.kept() == ids(others[1:]))


async def test_a_reader_that_has_come_to_its_end_holds_nothing_up(host):
    async with host.service() as service:
        (job,) = await host.ended(service, 1, b"content")
        stream = job.stream_output()
        assert service._readers.job_ids() == {job.id}
        assert [chunk.data async for chunk in stream] == [b"content"]
        assert service._readers.job_ids() == frozenset()


async def test_a_reader_that_leaves_early_holds_nothing_up(host):
    async with host.service() as service:
        (job,) = await host.ended(service, 1, b"content")
        with job.stream_output() as stream:
            assert service._readers.job_ids() == {job.id}
        assert service._readers.job_ids() == frozenset()
        stream.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_reader_that_was_dropped_holds_nothing_up(host):
    async with host.service() as service:
        (job,) = await host.ended(service, 1, b"content")
        stream = job.stream_output()
        assert service._readers.job_ids() == {job.id}
        del stream
        gc.collect()
        assert service._readers.job_ids() == frozenset()


async def test_a_reader_that_comes_after_the_choice_keeps_its_job(host, monkeypatch):
    reached, may_go = threading.Event(), threading.Event()

    def held(*_arguments):
        reached.set()
        assert may_go.wait(PATIENCE)

    monkeypatch.setattr(removing.output, "check_removable", held)
    async with host.service(keep(keep_jobs=1)) as service:
        first, second = await host.ended(service, 2, b"content")
        await asyncio.to_thread(reached.wait, PATIENCE)
        with first.stream_output() as stream:
            may_go.set()
            await until(lambda: first.id in service._retainer._held)
            assert [chunk.data async for chunk in stream] == [b"content"]
        await until(lambda: host.kept() == {second.id})


async def test_one_that_cannot_be_removed_is_said_once_and_holds_up_no_other(host, caplog):
    async with host.service() as service:
        jobs = await host.ended(service, 4)
    (host.log_dir / jobs[0].id / "core").touch()
    async with host.service(keep(keep_jobs=1)) as service:
        await until(lambda: host.kept() == ids([jobs[0], jobs[3]]))
        for _ in range(5):
            await service._retainer._look()
        said = [each for each in caplog.records if jobs[0].id in each.getMessage()]
        assert len(said) == 1
        assert "core" in said[0].getMessage()
        assert (await service.fetch_job(jobs[0].id)).finished


async def test_where_nothing_can_be_removed_it_is_soon_given_up_for_a_while(
    host, caplog, monkeypatch
):
    asked = []

    def refuse(_log_dir, job_id):
        asked.append(job_id)
        raise FailedPrecondition("read-only")

    async with host.service() as service:
        await host.ended(service, 3 * removing.BATCH)
    monkeypatch.setattr(removing.output, "check_removable", refuse)
    async with host.service(keep(keep_jobs=1)) as service:
        await until(lambda: "cannot remove old jobs now" in caplog.text)
        for _ in range(5):
            assert await service._retainer._look() > 1
        assert len(asked) == removing.BATCH


async def test_a_registry_that_is_out_of_reach_is_not_asked_all_the_time(host, caplog, monkeypatch):
    caplog.set_level(logging.ERROR)
    async with host.service(keep(keep_jobs=1)) as service:
        asked = []

        def fail(*_arguments):
            asked.append(1)
            raise Unavailable("locked")

        monkeypatch.setattr(service._store, "read", fail)
        for _ in range(5):
            service._retainer.wake()
            assert await service._retainer._look() > 1
        assert len(asked) == 1
        assert caplog.text.count("cannot remove old jobs now") == 1


async def test_an_error_that_nobody_has_thought_of_does_not_end_retention(host, monkeypatch):
    async with host.service(keep(keep_jobs=1)) as service:
        monkeypatch.setattr(service._retainer._ended, "totals", lambda: 1 / 0)
        await host.ended(service, 2)
        await until(lambda: len(service._retainer._attempts) == 1)
        monkeypatch.undo()
        service._retainer._attempts.succeeded("")
        service._retainer.wake()
        await until(lambda: len(host.kept() or ()) == 1)


async def test_many_ends_are_one_look(host):
    async with host.service() as service:
        service._retainer._settling = 3600.0
        looks = []
        look = service._retainer._look

        async def counted():
            looks.append(time.monotonic())
            return await look()

        service._retainer._look = counted
        jobs = await host.ended(service, 20)
        assert len(jobs) == 20
        await asyncio.sleep(0)
        assert len(looks) <= 1


@pytest.mark.parametrize(
    "given", [{"retention": keep(keep_jobs=0)}, {"running": RunningLimits(total=0)}]
)
def test_impossible_bounds_are_refused(tmp_path, given):
    with pytest.raises(ConfigError):
        Service(log_dir=tmp_path, state_dir=tmp_path, run_dir=tmp_path, **given)


# How many run


async def test_of_many_starts_at_once_as_many_run_as_may_and_nothing_is_left_of_the_others(host):
    async with host.service(total=3) as service:
        results = await asyncio.gather(
            *(service.start_job(TRUE, owner="alpha") for _ in range(10)), return_exceptions=True
        )
        refused = [each for each in results if isinstance(each, ResourceExhausted)]
        started = [each for each in results if not isinstance(each, Exception)]
        assert (len(started), len(refused)) == (3, 7)
        assert "max-running-jobs" in str(refused[0])
        assert host.kept() == ids(started)


async def test_a_retry_of_a_running_job_is_never_refused(host):
    async with host.service(total=1) as service:
        spec = replace(TRUE, request_id="r")
        job = await service.start_job(spec, owner="alpha")
        assert await service.start_job(spec, owner="alpha") is job
        with pytest.raises(ResourceExhausted):
            await service.start_job(TRUE, owner="alpha")


async def test_a_start_that_fails_gives_its_slot_back(host):
    async with host.service(total=1) as service:
        host.shim.refusal = CommandNotFound("no")
        with pytest.raises(CommandNotFound):
            await service.start_job(TRUE)
        await service.start_job(TRUE)


async def test_a_start_that_cannot_be_recorded_takes_no_slot(host, monkeypatch):
    async with host.service(total=1) as service:
        with monkeypatch.context() as patch:
            patch.setattr(service._store, "write", failing(ResourceExhausted("disk full")))
            with pytest.raises(ResourceExhausted, match="disk full"):
                await service.start_job(TRUE)
        await service.start_job(TRUE)


def failing(error):
    def fail(*_arguments):
        raise error

    return fail


async def test_a_job_that_has_ended_gives_its_slot_to_who_waited_for_it(host):
    async with host.service(per_user=1) as service:
        job = await service.start_job(TRUE, owner="alpha")
        await service.start_job(TRUE, owner="bravo")
        with pytest.raises(ResourceExhausted, match="alpha"):
            await service.start_job(TRUE, owner="alpha")
        host.shim.end(job.id, exit_code=0)
        await job.wait()
        await service.start_job(TRUE, owner="alpha")


async def test_the_next_service_counts_the_jobs_of_the_last_one(host):
    async with host.service() as service:
        jobs = await host.start(service, 2)
    async with host.service(total=2) as service:
        with pytest.raises(ResourceExhausted):
            await service.start_job(TRUE)
        host.shim.end(jobs[0].id, exit_code=0)
        await (await service.fetch_job(jobs[0].id)).wait()
        await service.start_job(TRUE)
