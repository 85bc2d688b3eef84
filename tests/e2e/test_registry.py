"""The registry under the real server: a full disk, damage, and lists of what runs and has run."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess

import grpc
import pytest

from jobworker.job.registry.store import Store
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.registry import job_record
from tests.support.waiting import until


@pytest.fixture
def small(tmp_path):
    """A state directory on a file system of its own, which is soon full."""
    directory = tmp_path / "small"
    directory.mkdir()
    options = "size=4m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.fixture
def crowded(small, server, tmp_path):
    """A server whose registry is on that file system."""
    options = ("--state-dir", str(small), "--audit-log", str(tmp_path / "audit.log"))
    running = server(*options)
    yield running
    with contextlib.suppress(FileNotFoundError):
        (small / "filler").unlink()
    running.close()


def fill(directory):
    """Leave no byte free."""
    with (directory / "filler").open("wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)) == size:
                    pass


def make_room(directory):
    (directory / "filler").unlink()


async def start_until_refused(client):
    """Start jobs: what is left in the log's last page is soon used up."""
    while True:
        await client.wait((await client.start(sh("exit 0"))).job_id)


async def test_a_start_that_a_full_registry_refuses_leaves_nothing_behind(crowded, small):
    async with crowded.client() as client:
        fill(small)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await start_until_refused(client)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "free some space" in refusal.value.details()
        known = {job.id async for job in client.list_jobs(pb.ListRequest())}
        assert {path.name for path in crowded.log_dir.iterdir()} <= known
        await until(lambda: not [path for path in crowded.jobs_cgroup.iterdir() if path.is_dir()])
        make_room(small)
        job_id = (await client.start(sh("exit 5"))).job_id
        assert (await client.wait(job_id)).exit_code == 5


async def test_a_job_is_controlled_and_its_end_told_and_listed_while_the_registry_is_full(
    crowded, small, gate
):
    async with crowded.client() as client:
        ends = (await client.start(sh(f"{gate.wait}; exit 7"))).job_id
        stopped = (await client.start(sh("exec sleep 1000"))).job_id
        fill(small)
        await client.pause(stopped)
        await client.resume(stopped)
        await client.stop(stopped)
        gate.open()
        assert (await client.wait(ends)).exit_code == 7
        for job_id, status in ((ends, pb.STATUS_EXITED), (stopped, pb.STATUS_STOPPED)):
            assert (await client.status(job_id)).status.status == status
            found = [job.id async for job in client.list_jobs(pb.ListRequest(statuses=[status]))]
            assert found == [job_id]
        running = pb.ListRequest(statuses=[pb.STATUS_RUNNING])
        assert [job.id async for job in client.list_jobs(running)] == []
        make_room(small)

        def recorded():
            with contextlib.closing(sqlite3.connect(small / "jobs.db")) as registry:
                states = registry.execute("SELECT state FROM jobs ORDER BY state").fetchall()
            return states == [("exited",), ("stopped",)]

        await until(recorded, "both ends are recorded")


def refused(running):
    """Start a server that refuses to; return what it says."""
    done = subprocess.run(running.command(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_server_with_a_damaged_registry_refuses_to_start_and_keeps_it(server):
    running = server()
    running.terminate()
    registry = running.state_dir / "jobs.db"
    sound = registry.read_bytes()
    for damaged in (b"garbage" * 1000, sound[: len(sound) // 2], b"\xa5" * 4096 + sound[4096:]):
        registry.write_bytes(damaged)
        assert f"{registry}" in (said := refused(running))
        assert "backup" in said
        assert registry.read_bytes() == damaged
    registry.write_bytes(sound)
    running.restart()
    assert running.cli("list").returncode == 0


def test_a_registry_on_a_read_only_file_system_is_refused_with_what_to_do(server, small, tmp_path):
    running = server("--state-dir", str(small), "--audit-log", str(tmp_path / "audit.log"))
    running.terminate()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    said = refused(running)
    subprocess.run(["mount", "-o", "remount,rw", small], check=True)
    assert "ead-only file system" in said


def test_damage_that_is_met_later_fails_that_call_alone(server):
    running = server()
    running.terminate()
    registry = running.state_dir / "jobs.db"
    with contextlib.closing(Store.open(registry)) as store:
        for number in range(1, 4):
            store.insert(job_record(number), "")
        store.write("UPDATE jobs SET spec = '{' WHERE created_at = 2", {})
    running.restart()
    listing = running.cli("list")
    assert listing.returncode == 1
    assert b"registry" in listing.stderr
    assert b"backup" in listing.stderr
    assert running.cli("status", job_record(1).id).returncode == 0
    assert running.cli("start", "true").returncode == 0


def test_list_shows_what_runs_and_what_has_run(server, gate):
    running = server()
    first = running.cli("start", "--name", "n", "--label", "k=v", "true").stdout.decode().strip()
    assert running.cli("wait", first).returncode == 0
    second = running.cli("start", "sh", "-c", gate.wait).stdout.decode().strip()
    assert running.cli("pause", second).returncode == 0

    def listed(*arguments):
        return running.cli("list", "-q", *arguments).stdout.decode().split()

    assert listed() == [second, first]
    assert listed("--status", "running") == [second]
    assert listed("--name", "n", "--label", "k=v", "--since", "1h") == [first]
    assert listed("--owner", "user_bravo") == []
    assert listed("--until", "1h") == []
    (found, _) = map(json.loads, running.cli("list", "--format", "json").stdout.splitlines())
    assert found["paused"]
    assert found["pid"]
    assert running.cli("list", user="user_bravo").returncode == 0
    assert running.cli("resume", second).returncode == 0
    gate.open()


def test_a_listing_of_thousands_is_whole_and_in_order(server):
    running = server("--keep-for", "none")  # they ended long ago
    running.terminate()
    with (
        contextlib.closing(Store.open(running.state_dir / "jobs.db")) as store,
        store.transaction(),
    ):
        for number in range(1, 2501):
            store.insert(job_record(number), "")
    running.restart()
    listed = running.cli("list", "-q", "--all").stdout.decode().split()
    assert listed == [job_record(number).id for number in range(2500, 0, -1)]
