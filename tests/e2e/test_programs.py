"""The programs together: a server, its clients, and what outlives what."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid

from jobworker.rpc.v1 import jobworker_pb2 as pb


def shell(script: str) -> pb.StartRequest:
    return pb.StartRequest(command=pb.Command(name="sh", args=["-c", script]))


def test_the_cli_prints_the_job_id_alone_and_output_byte_for_byte(server):
    serving = server()
    started = serving.cli("start", "--", "printf", r"\000\377no newline")
    job_id = started.stdout.decode().removesuffix("\n")
    assert (started.returncode, started.stderr, str(uuid.UUID(job_id))) == (0, b"", job_id)
    followed = serving.cli("output", "--tail", job_id)
    assert (followed.returncode, followed.stdout) == (0, b"\0\xffno newline")


def test_status_tells_the_exit_code(server):
    serving = server()
    job_id = serving.cli("start", "--", "sh", "-c", "exit 3").stdout.decode().strip()
    serving.cli("output", "--tail", job_id)
    status = json.loads(serving.cli("status", "--format", "json", job_id).stdout)["status"]
    assert (status["status"], status["exit_code"]) == ("STATUS_EXITED", 3)


def test_user_bravo_may_look_but_not_touch(server):
    serving = server()
    job_id = serving.cli("start", "--", "echo", "hello").stdout.decode().strip()
    refused = serving.cli("start", "--", "true", user="user_bravo")
    assert refused.returncode != 0
    assert b"user_bravo" in refused.stderr
    assert serving.cli("output", "--tail", job_id, user="user_bravo").stdout == b"hello\n"


async def test_a_killed_server_loses_no_job_no_byte_and_no_exit_code(server, tmp_path):
    serving = await asyncio.to_thread(server)
    gate = tmp_path / "gate"
    script = f"echo one; until [ -e '{gate}' ]; do sleep 0.02; done; echo two; exit 7"
    async with serving.client() as client:
        job_id = (await client.start(shell(script))).job_id
    serving.kill()
    await asyncio.to_thread(serving.restart)
    async with serving.client() as client:
        running = (await client.status(job_id)).status
        gate.touch()
        messages = [message async for message in client.output(job_id, tail=True)]
    assert running.status == pb.STATUS_RUNNING
    assert b"".join(message.output for message in messages) == b"one\ntwo\n"
    end = messages[-1].end.status
    assert (end.status, end.exit_code) == (pb.STATUS_EXITED, 7)


async def test_a_job_that_ends_while_no_server_runs_is_known_to_the_next_one(server, tmp_path):
    serving = await asyncio.to_thread(server)
    gate = tmp_path / "gate"
    async with serving.client() as client:
        request = shell(f"until [ -e '{gate}' ]; do sleep 0.02; done; echo late; exit 5")
        job_id = (await client.start(request)).job_id
    serving.kill()
    gate.touch()
    await asyncio.to_thread(serving.wait_for_end, job_id)
    await asyncio.to_thread(serving.restart)
    async with serving.client() as client:
        status = (await client.status(job_id)).status
        output = [message.output async for message in client.output(job_id)]
    assert (status.status, status.exit_code) == (pb.STATUS_EXITED, 5)
    assert b"".join(output) == b"late\n"


def test_sigterm_leaves_jobs_running_and_the_next_server_can_stop_them(server):
    serving = server()
    job_id = serving.cli("start", "--", "sleep", "1000").stdout.decode().strip()
    assert serving.terminate() == 0
    assert (serving.jobs_cgroup / job_id / "cgroup.procs").read_text() != ""
    serving.restart()
    assert serving.cli("stop", job_id).returncode == 0
    assert not (serving.jobs_cgroup / job_id).exists()


def test_a_second_server_on_the_same_directories_is_refused(server):
    serving = server()
    second = subprocess.run(serving.command(), capture_output=True, timeout=60, check=False)
    assert second.returncode != 0
    assert b"another jobworker server" in second.stderr
