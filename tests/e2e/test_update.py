"""Limits of a running job, changed through the real server.

That they hold is measured in the guest; a machine without the controllers refuses by name.
"""

import json

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh

MISSING = "00000000-0000-4000-8000-000000000000"
PIDS = pb.Limits(pids_max=50)
FLAGS = {
    "--memory-high": ("64M", "memory.high", "67108864"),
    "--memory-max": ("64M", "memory.max", "67108864"),
    "--cpu-weight": ("50", "cpu.weight", "50"),
    "--cpu-max": ("1.5", "cpu.max", "150000 100000"),
    "--io-weight": ("50", "io.weight", "default 50"),
    "--pids-max": ("50", "pids.max", "50"),
}
"""A flag → a value, and the file and the text that it becomes."""


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


@pytest.mark.parametrize("flag", FLAGS)
def test_a_limit_is_changed_or_refused_by_name(server, flag):
    value, file, content = FLAGS[flag]
    controller = file.partition(".")[0]
    running = server()
    job_id = running.cli("start", "sleep", "1000").stdout.decode().strip()
    result = running.cli("update", flag, value, job_id)
    if controller in (running.jobs_cgroup / "cgroup.subtree_control").read_text().split():
        assert result.returncode == 0, result.stderr
        assert flag.removeprefix("--") in result.stdout.decode()
        assert content in (running.jobs_cgroup / job_id / file).read_text()
        assert (
            f"limits     {flag.removeprefix('--')} "
            in running.cli("status", job_id).stdout.decode()
        )
    else:
        assert result.returncode == 1
        assert f" to job {job_id}: " in result.stderr.decode()
        assert f"the {controller} controller" in result.stderr.decode()
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0


async def test_what_cannot_be_changed_says_why(server):
    running = server()
    async with running.client() as client, running.client("user_bravo") as bravo:
        live = (await client.start(sh("sleep 1000"))).job_id
        ended = (await client.start(sh("exit 0"))).job_id
        async for _ in client.output(ended, tail=True):
            pass
        burst = pb.Limits(cpu_burst_max=1000)
        for user, job_id, limits, code, words in (
            (client, live, pb.Limits(), "INVALID_ARGUMENT", "at least one limit"),
            (client, live, pb.Limits(cpu_weight=0), "INVALID_ARGUMENT", "limits.cpu_weight"),
            (client, live, pb.Limits(memory=1, memory_max=2), "INVALID_ARGUMENT", "limits.memory"),
            (client, live, burst, "INVALID_ARGUMENT", "limits.cpu_burst_max"),
            (client, ended, PIDS, "FAILED_PRECONDITION", "it has ended"),
            (client, MISSING, PIDS, "NOT_FOUND", MISSING),
            (client, "x", PIDS, "INVALID_ARGUMENT", "job_id"),
            (bravo, live, PIDS, "PERMISSION_DENIED", "mutate"),
        ):
            refused = await refusal(user.update_limits(job_id, limits))
            assert refused[0] == code
            assert words in refused[1]
        await client.stop(live, grace=0)


async def test_a_change_is_answered_with_what_is_in_force_kept_and_written_down(server):
    running = server()
    enabled = (running.jobs_cgroup / "cgroup.subtree_control").read_text().split()
    async with running.client() as client:
        job_id = (await client.start(sh("sleep 1000"))).job_id
        if "pids" in enabled:
            answer = await client.update_limits(job_id, PIDS)
            assert answer.limits == PIDS
            running.restart()
            assert (await client.status(job_id)).job.limits == PIDS
        else:
            code, _ = await refusal(client.update_limits(job_id, PIDS))
            assert code == "FAILED_PRECONDITION"
        await client.stop(job_id, grace=0)
    lines = map(json.loads, (running.state_dir / "audit.log").read_text().splitlines())
    changed = [line for line in lines if line["event"] == "limits updated"]
    assert [line["limits"] for line in changed] == ([{"pids_max": 50}] if "pids" in enabled else [])
