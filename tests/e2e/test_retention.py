"""What a server was told to keep is kept, and no more; and no more jobs run than may."""

import asyncio
import contextlib
import json

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.invariants import check_invariants
from tests.support.jobs import sh
from tests.support.waiting import until


async def finished(client, request):
    """Run a job to its end; return its id."""
    job_id = (await client.start(request)).job_id
    async with contextlib.aclosing(client.output(job_id, tail=True)) as messages:
        async for _ in messages:
            pass
    return job_id


def kept(server):
    return {path.name for path in server.log_dir.iterdir()}


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_the_newest_jobs_are_kept_and_running_ones(server):
    running = server("--keep-jobs", "2", "--keep-for", "none")
    async with running.client() as client:
        alive = (await client.start(sh("sleep 1000"))).job_id
        jobs = [await finished(client, sh("echo x")) for _ in range(4)]
        await until(lambda: kept(running) == {alive, *jobs[2:]})
        assert (await refusal(client.status(jobs[0])))[0] is grpc.StatusCode.NOT_FOUND
        assert (await client.status(alive)).status.status == pb.STATUS_RUNNING
        await check_invariants(running, client)
        await client.stop(alive, grace=0)
    audit = (running.state_dir / "audit.log").read_text().splitlines()
    removed = [line for line in map(json.loads, audit) if line["event"] == "removed"]
    assert [line["job_id"] for line in removed][:2] == jobs[:2]
    assert {line["why"] for line in removed} == {"retention"}
    assert not any("user" in line for line in removed)


async def test_jobs_are_kept_as_long_as_the_server_is_told_across_restarts(server):
    running = server("--keep-for", "none")
    async with running.client() as client:
        jobs = [await finished(client, sh("echo x")) for _ in range(3)]
        assert await asyncio.to_thread(running.terminate) == 0
        running.options = ("--keep-for", "100ms")
        await asyncio.to_thread(running.restart)
        await until(lambda: kept(running) == set())
        await check_invariants(running, client)
        assert (await refusal(client.status(jobs[0])))[0] is grpc.StatusCode.NOT_FOUND


async def test_what_is_being_read_is_kept_until_it_was_read(server, gate):
    size = 96 << 20  # More than the windows of a connection hold.
    running = server("--keep-jobs", "1")
    async with running.client() as client, running.client() as other:
        request = sh(f"yes | head -c {size}; {gate.wait}")
        read = (await client.start(request)).job_id
        seen, end = 0, None
        async with contextlib.aclosing(client.output(read, tail=True)) as messages:
            async for message in messages:
                if not seen:
                    gate.open()
                    await other.wait(read)
                    *_, last = [await finished(other, sh("echo x")) for _ in range(3)]
                    await until(lambda last=last: kept(running) == {read, last})
                seen += len(message.output)
                end = message.end
        assert (seen, end.size) == (size, size)
        await until(lambda: kept(running) == {last})


async def test_no_more_jobs_run_than_may_and_the_next_server_counts_them(server):
    limits = ("--max-running-jobs", "3", "--max-running-jobs-per-user", "2")
    running = server(*limits)
    running.config.write_text(
        '[users]\nuser_alpha = ["mutate", "query"]\nuser_bravo = ["mutate", "query"]\n'
    )
    await asyncio.to_thread(running.restart)
    async with running.client() as alpha, running.client("user_bravo") as bravo:
        first = (await alpha.start(sh("sleep 1000", request_id="r"))).job_id
        second = (await alpha.start(sh("sleep 1000"))).job_id
        code, words = await refusal(alpha.start(sh("true")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 jobs run for user_alpha" in words
        assert "max-running-jobs-per-user" in words
        third = (await bravo.start(sh("sleep 1000"))).job_id
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(running.restart)
        code, words = await refusal(bravo.start(sh("true")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3 jobs run here" in words
        assert (await alpha.start(sh("sleep 1000", request_id="r"))).job_id == first
        await bravo.stop(third, grace=0)
        await finished(bravo, sh("true"))
        for job_id in (first, second):
            await alpha.stop(job_id, grace=0)
