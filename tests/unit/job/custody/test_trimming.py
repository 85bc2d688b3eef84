"""An orphan's output, whose trimmer has died with its shim."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from jobworker import output
from jobworker.job.custody.trimming import keep_trimmed
from jobworker.job.record import JobRecord
from jobworker.job.spec import JobSpec
from tests.support.waiting import until

CAP = 64 * 1024


@pytest.fixture
def make(tmp_path):
    """Make the files of a job; return its record and their paths."""
    output.prepare(tmp_path / "log")

    def make(*, cap=CAP, split=False):
        job_id = str(uuid4())
        output.Log.create(tmp_path / "log", job_id, split_stderr=split).close()
        spec = JobSpec(command="x", split_stderr=split)
        record = JobRecord(id=job_id, owner="", spec=spec, created_at=0, output_max_bytes=cap)
        directory = tmp_path / "log" / job_id
        return record, [directory / "output", directory / "stderr"][: 1 + split]

    make.log_dir = tmp_path / "log"
    return make


def write(path, count):
    with path.open("ab") as file:
        file.write(b"x" * count)


def taken(path):
    return path.stat().st_blocks * 512


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_outputs_are_cut_as_they_grow_and_exactly_at_the_end(make):
    record, paths = make(split=True)
    async with keep_trimmed(make.log_dir, record):
        for path in paths:
            write(path, 20 * CAP)
        await until(lambda: all(taken(path) <= 4 * CAP for path in paths))
        for path in paths:
            write(path, CAP // 2)
    assert all(taken(path) <= CAP + 16 * 1024 for path in paths)
    assert all(path.stat().st_size == 20 * CAP + CAP // 2 for path in paths)


async def test_an_output_without_a_cap_is_left_alone(make):
    record, (path,) = make(cap=None)
    async with keep_trimmed(make.log_dir, record):
        write(path, 20 * CAP)
    assert taken(path) >= 20 * CAP


async def test_an_output_that_is_gone_keeps_no_job_from_ending(make, caplog):
    record, (path,) = make()
    path.unlink()
    async with keep_trimmed(make.log_dir, record):
        pass
    assert "below its cap" in caplog.text


async def test_a_server_that_is_left_meanwhile_closes_what_it_has_opened(make):
    record, (path,) = make()
    before = open_files()

    async def forever():
        async with keep_trimmed(make.log_dir, record):
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    write(path, 20 * CAP)
    await until(lambda: taken(path) <= 4 * CAP)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert open_files() <= before
