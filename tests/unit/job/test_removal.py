"""Removing jobs, on a fake kernel and a fake shim, with real files and a real registry."""

import asyncio
import threading
from dataclasses import replace

import pytest

from jobworker import output
from jobworker.errors import (
    FailedPrecondition,
    InvalidArgument,
    JobNotFound,
    ResourceExhausted,
    ShuttingDown,
)
from jobworker.job import JobSpec, State
from jobworker.job import removal as removing
from jobworker.testing.shim import FakeShim
from tests.support.fake_host import FakeHost
from tests.support.waiting import PATIENCE, until

TRUE = JobSpec(command="true")


class Host(FakeHost):
    def nothing_is_left(self):
        tables = ("jobs", "removing", "labels")
        rows = [row for table in tables for row in self.registry(f"SELECT * FROM {table}")]  # noqa: S608
        return [*self.log_dir.iterdir(), *rows] == []

    async def ended(self, service, content=b"", **spec):
        """Start a job that has written `content` and ended."""
        job = await service.start_job(replace(TRUE, **spec), owner="alpha")
        (self.log_dir / job.id / "output").write_bytes(content)
        (self.log_dir / job.id / "exit.json").write_text("{}")
        self.shim.end(job.id, exit_code=0, output_size=len(content))
        await job.wait()
        return job


@pytest.fixture
def host(tmp_path):
    with FakeShim() as shim:
        yield Host(tmp_path, shim)


@pytest.fixture
async def service(host):
    async with host.service() as service:
        yield service


class Held:
    """Stands for a function that is called in a thread, and waits there until it is let go."""

    def __init__(self, function, error=None):
        self.reached, self.may_go = threading.Event(), threading.Event()
        self.function, self.error = function, error

    def __call__(self, *arguments):
        self.reached.set()
        assert self.may_go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.function(*arguments)


async def test_nothing_is_left_of_a_job_that_was_removed(host, service):
    job = await host.ended(service, b"x", labels={"k": "v"})
    assert (await service.remove_job(job.id, user="bravo")).id == job.id
    assert host.nothing_is_left()
    assert host.changes[-1] == ("removed", job.id, "bravo")
    for call in (service.fetch_job, service.stop_job, service.wait_job, service.remove_job):
        with pytest.raises(JobNotFound):
            await call(job.id)


async def test_a_running_job_is_refused_with_what_to_do(host, service):
    job = await service.start_job(TRUE)
    with pytest.raises(FailedPrecondition, match=f"it is running.*jobworker-cli stop {job.id}"):
        await service.remove_job(job.id)
    assert (await service.fetch_job(job.id)).status.state is State.RUNNING
    assert (host.log_dir / job.id).exists()


async def test_a_job_whose_start_hangs_is_refused_at_once(host, service):
    client, may_go = host.shim.clients[-1], asyncio.Event()
    launch = client.launch

    async def held(*arguments, **fds):
        await may_go.wait()
        return await launch(*arguments, **fds)

    client.launch = held
    starting = asyncio.create_task(service.start_job(TRUE))
    await until(lambda: service._starting.under_way)
    (job_id,) = service._starting._launches
    with pytest.raises(FailedPrecondition, match="it is pending"):
        await asyncio.wait_for(service.remove_job(job_id), PATIENCE)
    may_go.set()
    assert (await starting).id == job_id


async def test_what_is_no_id_and_what_is_no_job_is_refused(service):
    with pytest.raises(InvalidArgument):
        await service.remove_job("../x")
    with pytest.raises(JobNotFound):
        await service.remove_job("00000000-0000-4000-8000-000000000000")


async def test_the_request_of_a_removed_job_starts_another(host, service):
    job = await host.ended(service, request_id="r")
    await service.remove_job(job.id)
    other = await service.start_job(replace(TRUE, request_id="r"), owner="alpha")
    assert other.id != job.id


async def test_of_two_who_remove_a_job_one_does(host, service):
    job = await host.ended(service)
    results = await asyncio.gather(
        *(service.remove_job(job.id) for _ in range(2)), return_exceptions=True
    )
    assert [type(result) for result in results if result is not results[0]] == [JobNotFound]
    assert host.changes.count(("removed", job.id, "")) == 1
    assert host.nothing_is_left()


async def test_what_a_job_has_put_beside_its_output_keeps_it_and_is_named(host, service):
    job = await host.ended(service)
    foreign = host.log_dir / job.id / "core"
    foreign.touch()
    with pytest.raises(FailedPrecondition, match=r"\(core\); move that away, then remove the job"):
        await service.remove_job(job.id)
    assert (await service.fetch_job(job.id)).finished
    assert (host.log_dir / job.id / "output").exists()
    foreign.unlink()
    await service.remove_job(job.id)
    assert host.nothing_is_left()


async def test_nobody_finds_a_job_while_its_files_are_being_removed(host, service, monkeypatch):
    job = await host.ended(service)
    held = Held(output.remove)
    monkeypatch.setattr(removing.output, "remove", held)
    task = asyncio.create_task(service.remove_job(job.id))
    await asyncio.to_thread(held.reached.wait, PATIENCE)
    with pytest.raises(JobNotFound):
        await service.fetch_job(job.id)
    held.may_go.set()
    await task
    assert host.nothing_is_left()


async def test_a_caller_that_goes_away_undoes_nothing(host, service, monkeypatch):
    job = await host.ended(service)
    held = Held(output.remove)
    monkeypatch.setattr(removing.output, "remove", held)
    task = asyncio.create_task(service.remove_job(job.id))
    await asyncio.to_thread(held.reached.wait, PATIENCE)
    task.cancel()
    held.may_go.set()
    await until(host.nothing_is_left)


async def test_files_that_cannot_be_removed_are_said_and_removed_by_the_next_start(
    host, monkeypatch
):
    def fail(*_args):
        raise OSError(5, "Input/output error")

    async with host.service() as service:
        job = await host.ended(service)
        with monkeypatch.context() as patch:
            patch.setattr(removing.output, "remove", fail)
            with pytest.raises(FailedPrecondition, match=r"is removed, but .*Input/output error"):
                await service.remove_job(job.id)
        with pytest.raises(JobNotFound):
            await service.fetch_job(job.id)
        assert (host.log_dir / job.id).exists()
    async with host.service() as service:
        with pytest.raises(JobNotFound):
            await service.fetch_job(job.id)
        await until(host.nothing_is_left)


@pytest.mark.parametrize("files", ["all", "exit.json", "none"])
async def test_a_removal_that_a_crash_has_interrupted_is_finished_by_the_next_start(host, files):
    async with host.service() as service:
        job = await host.ended(service, b"x")
    host.registry("INSERT INTO removing VALUES (?)", job.id)
    host.registry("DELETE FROM jobs")
    if files != "all":
        (host.log_dir / job.id / "output").unlink()
    if files == "none":
        (host.log_dir / job.id / "exit.json").unlink()
        (host.log_dir / job.id).rmdir()
    async with host.service():
        await until(host.nothing_is_left)


async def test_a_removal_under_way_when_the_service_is_left_is_finished_or_taken_up(
    host, monkeypatch
):
    held = Held(output.remove)
    async with host.service() as service:
        job = await host.ended(service)
        with monkeypatch.context() as patch:
            patch.setattr(removing.output, "remove", held)
            task = asyncio.create_task(service.remove_job(job.id))
            await asyncio.to_thread(held.reached.wait, PATIENCE)
        asyncio.get_running_loop().call_later(0.05, held.may_go.set)
    await asyncio.gather(task, return_exceptions=True)
    assert list(host.log_dir.iterdir()) == []
    async with host.service():
        await until(host.nothing_is_left)


@pytest.mark.parametrize("tail", [False, True])
async def test_who_reads_a_job_that_is_removed_gets_every_byte_and_the_end(host, service, tail):
    content = bytes(range(256)) * 5000
    job = await host.ended(service, content)
    with job.stream_output(tail=tail) as stream:
        first = (await anext(stream)).data
        await service.remove_job(job.id)
        assert host.nothing_is_left()
        rest = b"".join([chunk.data async for chunk in stream])
        assert first + rest == content
        end = stream.end()
    assert (end.status.exit_code, end.offset, end.size) == (0, len(content), len(content))


async def test_a_follower_from_the_running_job_on_outlives_its_removal(host, service):
    content = b"x" * 100_000
    job = await service.start_job(TRUE)
    with job.stream_output() as stream:
        (host.log_dir / job.id / "output").write_bytes(content)
        got = (await anext(stream)).data
        host.shim.end(job.id, exit_code=3, output_size=len(content))
        await job.wait()
        await service.remove_job(job.id)
        got += b"".join([chunk.data async for chunk in stream])
        assert got == content
        assert stream.end().status.exit_code == 3


async def test_a_job_whose_end_could_not_be_recorded_can_be_removed(host, service):
    job = await service.start_job(TRUE)
    update = service._store.update
    service._store.update = failing(ResourceExhausted("disk full"))
    host.shim.end(job.id, exit_code=0)
    await job.wait()
    service._store.update = update
    await service.remove_job(job.id)
    with pytest.raises(JobNotFound):
        await service.fetch_job(job.id)
    assert host.nothing_is_left()


def failing(error):
    def fail(*_args):
        raise error

    return fail


async def test_a_registry_that_cannot_be_written_keeps_the_job(host, service, monkeypatch):
    job = await host.ended(service)
    monkeypatch.setattr(service._store, "write", failing(ResourceExhausted("disk full")))
    with pytest.raises(ResourceExhausted):
        await service.remove_job(job.id)
    assert (await service.fetch_job(job.id)).finished
    assert (host.log_dir / job.id / "output").exists()


async def test_a_service_that_is_being_left_removes_nothing_more(host):
    async with host.service() as service:
        job = await host.ended(service)
    with pytest.raises(ShuttingDown):
        await service.remove_job(job.id)
