"""Finished jobs are removed with their output, whoever dies meanwhile and whoever reads them."""

import asyncio
import contextlib
import json

import grpc
import pytest

from jobworker import steps
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.testing.faults import SERVER
from tests.support.cgroups import own_cgroup
from tests.support.faults import FaultyServer
from tests.support.invariants import check_invariants
from tests.support.jobs import sh
from tests.support.waiting import until

NO_JOB = "00000000-0000-4000-8000-000000000000"


async def finished(client, request):
    """Run a job to its end; return its id."""
    job_id = (await client.start(request)).job_id
    async with contextlib.aclosing(client.output(job_id, tail=True)) as messages:
        async for _ in messages:
            pass
    return job_id


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def is_gone(client, server, job_id):
    unknown = await code_of(client.status(job_id)) is grpc.StatusCode.NOT_FOUND
    return unknown and not (server.log_dir / job_id).exists()


async def test_removed_jobs_are_gone_and_what_could_not_be_removed_is_said(server):
    running = server()
    async with running.client() as client:
        first, second = [await finished(client, sh("echo x")) for _ in range(2)]
        alive = (await client.start(sh("sleep 1000"))).job_id
        ids = [first, alive, NO_JOB, second]
        result = await asyncio.to_thread(running.cli, "remove", *ids)
        assert result.returncode == 1
        assert result.stdout.decode().split() == [first, second]
        cannot = "jobworker-cli: cannot remove job"
        said = result.stderr.decode().splitlines()
        assert said == [
            f"{cannot} {alive}: it is running; stop it first: jobworker-cli stop {alive}",
            f"{cannot} {NO_JOB}: no job has the id {NO_JOB}",
        ]
        assert await is_gone(client, running, first)
        assert await is_gone(client, running, second)
        result = await asyncio.to_thread(running.cli, "remove", "--force", "--format=json", alive)
        assert (result.returncode, json.loads(result.stdout)) == (0, {"job_id": alive})
        assert await is_gone(client, running, alive)
        await check_invariants(running, client)
    audit = (running.state_dir / "audit.log").read_text().splitlines()
    removed = [line for line in map(json.loads, audit) if line["event"] == "removed"]
    assert [(line["job_id"], line["user"]) for line in removed] == [
        (job_id, "user_alpha") for job_id in (first, second, alive)
    ]


async def test_who_may_only_look_may_not_remove(server):
    running = server()
    async with running.client() as client, running.client("user_bravo") as bravo:
        job_id = await finished(client, sh("true"))
        assert await code_of(bravo.remove(job_id)) is grpc.StatusCode.PERMISSION_DENIED
        assert (await client.status(job_id)).job.id == job_id


async def test_a_client_that_reads_gets_every_byte_and_the_end_of_a_removed_job(server):
    size = 32 << 20  # More than the windows of a connection hold.
    running = server()
    async with running.client() as client, running.client() as other:
        job_id = await finished(client, sh(f"yes | head -c {size}; exit 3"))
        seen, end = 0, None
        async with contextlib.aclosing(client.output(job_id, tail=True)) as messages:
            async for message in messages:
                if not seen:
                    await other.remove(job_id)
                    assert await is_gone(other, running, job_id)
                seen += len(message.output)
                end = message.end
        assert (seen, end.size, end.status.exit_code) == (size, size, 3)


async def test_a_server_that_dies_in_a_removal_leaves_nothing(tmp_path, certs, cgroup_mount):
    """Killed at each step: the job is there as it was, or gone, and then all of it is."""
    with own_cgroup(cgroup_mount) as cgroup_root:
        faulty = FaultyServer(tmp_path, certs, cgroup_root)
        try:
            async with faulty.client() as client:
                for step in [name for name in steps.TABLE if name.startswith("server.remove.")]:
                    job_id = await finished(client, sh("echo x", request_id=step))
                    faulty.order(step, SERVER)
                    assert await code_of(client.remove(job_id)) is grpc.StatusCode.UNAVAILABLE
                    await faulty.carried_out(SERVER)
                    await asyncio.to_thread(faulty.restart)
                    await until(lambda job_id=job_id: is_gone(client, faulty, job_id))
                    again = await finished(client, sh("echo x", request_id=step))
                    assert again != job_id
                await check_invariants(faulty, client)
        finally:
            faulty.close()


async def test_what_a_job_has_put_beside_its_output_is_not_deleted(server):
    running = server()
    async with running.client() as client:
        job_id = await finished(client, sh(f"echo kept > {running.log_dir}/$JOBWORKER_JOB_ID/mine"))
        mine = running.log_dir / job_id / "mine"
        result = await asyncio.to_thread(running.cli, "remove", job_id)
        assert result.returncode == 1
        assert f"{running.log_dir / job_id} holds what jobworker did not put there (mine)" in (
            result.stderr.decode()
        )
        assert (await client.status(job_id)).status.status == pb.STATUS_EXITED
        assert mine.read_text() == "kept\n"
        mine.unlink()
        assert (await asyncio.to_thread(running.cli, "remove", job_id)).returncode == 0
