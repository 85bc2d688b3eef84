"""What a job uses, asked while it runs, followed, and after it has ended."""

import asyncio
import json
import signal
import subprocess
import time

import grpc
import pytest

from jobworker.rpc.resume import StreamInterrupted
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.waiting import PATIENCE

BUSY = "while :; do :; done"


async def sample(client, job_id):
    (only,) = [each async for each in client.stats(job_id)]
    return only


async def refusal(stream):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream:
            pass
    return caught.value.code().name, caught.value.details()


async def test_one_sample_of_a_running_job(server):
    async with server().client() as client:
        job_id = (await client.start(sh(BUSY))).job_id
        first = await sample(client, job_id)
        while (later := await sample(client, job_id)).usage == first.usage:
            pass
        assert later.usage.cpu_user_us > 0
        assert later.time.ToNanoseconds() > first.time.ToNanoseconds()
        assert later.status.status == pb.STATUS_RUNNING
        assert not later.paused
        await client.pause(job_id)
        assert (await sample(client, job_id)).paused
        await client.stop(job_id, grace=0)


async def test_what_a_controller_would_know_is_there_with_it_and_absent_without(server):
    running = server()
    enabled = (running.jobs_cgroup / "cgroup.subtree_control").read_text().split()
    async with running.client() as client:
        job_id = (await client.start(sh("sleep 1000"))).job_id
        message = await sample(client, job_id)
        assert message.HasField("memory_current") is ("memory" in enabled)
        assert message.usage.HasField("oom_kills") is ("memory" in enabled)
        assert message.HasField("pids_current") is ("pids" in enabled)
        assert message.usage.HasField("cpu_throttled_us") is ("cpu" in enabled)
        assert message.usage.HasField("io_read_bytes") is ("io" in enabled)
        await client.stop(job_id, grace=0)


async def test_a_finished_job_has_one_sample_which_is_its_end(server):
    async with server().client() as client:
        job_id = (await client.start(sh("exit 3"))).job_id
        async for _ in client.output(job_id, tail=True):
            pass
        job = (await client.status(job_id)).job
        for follow in (False, True):
            (end,) = [each async for each in client.stats(job_id, follow=follow)]
            assert end == pb.StatsResponse(time=job.ended_at, usage=job.usage, status=job.status)


async def test_following_goes_on_to_the_end(server, gate):
    async with server().client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 4"))).job_id
        samples = []
        begun = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            async for each in client.stats(job_id, follow=True, interval=0.1):
                samples.append(each)
                if len(samples) == 3:
                    gate.open()
        *live, end = samples
        assert {each.status.status for each in live} == {pb.STATUS_RUNNING}
        assert (end.status.status, end.status.exit_code) == (pb.STATUS_EXITED, 4)
        assert end.usage == (await client.status(job_id)).job.usage
        used = [each.usage.cpu_user_us + each.usage.cpu_system_us for each in samples]
        assert used == sorted(used)
        assert len(live) <= (time.monotonic() - begun) / 0.1 + 1


async def test_a_short_job_is_followed_to_its_end_without_delay(server):
    async with server().client() as client:
        for _ in range(20):
            job_id = (await client.start(sh("exit 0"))).job_id
            async with asyncio.timeout(PATIENCE):
                *_, end = [each async for each in client.stats(job_id, follow=True, interval=3600)]
            assert end.status.status == pb.STATUS_EXITED
            assert end.usage == (await client.status(job_id)).job.usage


async def test_a_query_user_may_watch(server):
    running = server()
    async with running.client() as client, running.client("user_bravo") as bravo:
        job_id = (await client.start(sh("exit 0"))).job_id
        assert (await sample(bravo, job_id)).status.status


async def test_what_cannot_be_watched_says_why(server):
    async with server().client() as client:
        job_id = (await client.start(sh("exit 0"))).job_id
        code, details = await refusal(client.stats(job_id, interval=0.05))
        assert (code, "interval" in details) == ("INVALID_ARGUMENT", True)
        code, details = await refusal(client.stats("x"))
        assert (code, "job_id" in details) == ("INVALID_ARGUMENT", True)
        code, _ = await refusal(client.stats("00000000-0000-4000-8000-000000000000"))
        assert code == "NOT_FOUND"


async def test_a_server_that_shuts_down_says_so_to_those_who_watch(server):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh("sleep 1000"))).job_id
        stream = client.stats(job_id, follow=True, interval=3600, give_up_after=0)
        await anext(stream)
        assert await asyncio.to_thread(running.terminate) == 0
        with pytest.raises(StreamInterrupted, match="shutting down"):
            await anext(stream)
        await asyncio.to_thread(running.restart)
        await client.stop(job_id, grace=0)


def test_the_command_line_shows_one_sample(server):
    running = server()
    job_id = running.cli("start", "sh", "-c", "exit 3").stdout.decode().strip()
    running.cli("output", "--tail", job_id)
    text = running.cli("stats", job_id).stdout.decode()
    assert "status     exited (3)\n" in text
    assert "usage      " in text
    as_json = running.cli("stats", "--format", "json", job_id).stdout
    assert as_json.count(b"\n") == 1
    assert json.loads(as_json)["status"]["exit_code"] == 3


def test_the_command_line_follows_line_by_line(server):
    running = server()
    job_id = running.cli("start", "sh", "-c", BUSY).stdout.decode().strip()
    command = running.cli_command("stats", "--follow", "--interval", "100ms", job_id)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        lines = (following.stdout.readline().decode().split() for _ in range(100))
        assert next(lines) == ["TIME", "CPU", "MEMORY", "READ", "WRITTEN", "PIDS", "STATUS"]
        assert next(lines)[1] == "-"
        assert any(float(line[1].removesuffix("%")) > 1 for line in lines)
        assert running.cli("stop", "--grace", "0", job_id).returncode == 0
        rest, said = following.communicate(timeout=PATIENCE)
    assert rest.decode().splitlines()[-1].endswith("stopped (SIGKILL)")
    assert (following.returncode, said) == (0, b"")


def test_ctrl_c_ends_the_watching_and_not_the_job(server):
    running = server()
    job_id = running.cli("start", "sleep", "1000").stdout.decode().strip()
    command = running.cli_command("stats", "--follow", job_id)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=PATIENCE)
    assert following.returncode == 130
    assert said.startswith(b"jobworker-cli: interrupted; the job goes on unless it has ended: ")
    assert f"stats --follow {job_id} ".encode() in said
    assert b"running" in running.cli("status", job_id).stdout
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0
