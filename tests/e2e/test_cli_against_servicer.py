"""The CLI as a process of its own, over mutual TLS, against a stand-in for the service."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
import trustme

import jobworker
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.testing.servicer import RUNNING, STOPPED, Refusal, ScriptedService
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OUTPUT = bytes(range(256)) * 12_289  # 3 MiB and a bit, no UTF-8
NO_JOB = "00000000-0000-4000-8000-000000000000"


class Result(NamedTuple):
    status: int
    stdout: bytes
    stderr: str


class Cli:
    """Starts the program for a user of one server."""

    def __init__(self, pki, url: str) -> None:
        self.pki = pki
        self.url = url
        self.user = "user_alpha"
        self.ca = pki.ca
        self._running: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: str, **options) -> asyncio.subprocess.Process:
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(jobworker.__file__).parent.parent),
            "XDG_CONFIG_HOME": "/nonexistent",
            "JOBWORKER_URL": self.url,
            "JOBWORKER_CERT": str(self.pki.directory / f"{self.user}.crt"),
            "JOBWORKER_KEY": str(self.pki.directory / f"{self.user}.key"),
            "JOBWORKER_CA": str(self.ca),
        }
        pipes = dict.fromkeys(("stdout", "stderr"), asyncio.subprocess.PIPE)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "jobworker.cli", *arguments),
            env=environ,
            **{"stdin": asyncio.subprocess.DEVNULL, **pipes, **options},
        )
        self._running.append(process)
        return process

    async def __call__(self, *arguments: str, stdin: bytes | None = None, **options) -> Result:
        if stdin is not None:
            options["stdin"] = asyncio.subprocess.PIPE
        process = await self.start(*arguments, **options)
        return await finish(process, stdin)

    async def close(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def finish(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Result:
    stdout, stderr = await asyncio.wait_for(process.communicate(stdin), PATIENCE)
    assert process.returncode is not None
    message = (stderr or b"").decode()
    assert "Traceback" not in message
    return Result(process.returncode, stdout or b"", message)


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
async def listener(serve, service):
    return await serve(service)


@pytest.fixture
async def cli(pki, listener) -> AsyncIterator[Cli]:
    cli = Cli(pki, listener.url)
    yield cli
    await cli.close()


@pytest.fixture
def full() -> Iterator[int]:
    """A descriptor to which nothing can be written (full(4))."""
    fd = os.open("/dev/full", os.O_WRONLY)
    yield fd
    os.close(fd)


async def waits_in(pid: int, function: str) -> None:
    """Return when a process sleeps in a kernel `function`, a pattern (proc_pid_wchan(5))."""

    def waits() -> bool:
        return bool(re.search(function, Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")))

    async with asyncio.timeout(PATIENCE):
        while not waits():
            await asyncio.sleep(0.01)


async def until_full(pipe: int) -> None:
    """Return when a pipe takes nothing more (pipe(7): until a page of it is read)."""
    room = select.poll()
    room.register(pipe, select.POLLOUT)
    async with asyncio.timeout(PATIENCE):
        while room.poll(0):
            await asyncio.sleep(0.01)


# start


async def test_start_prints_the_id_alone_and_warnings_beside_it(cli, service):
    service.warnings = ["memory.high without memory.max"]
    result = await cli("start", "--memory-high", "1G", "sleep", "60")
    (job_id,) = service.jobs
    assert result.stdout.decode() == f"{job_id}\n"
    assert result.stderr == "jobworker-cli: warning: memory.high without memory.max\n"
    assert result.status == 0


async def test_start_sends_the_command_as_it_is(cli, service):
    await cli("start", "sh", "-c", 'echo "$HOME"', "--", "--url", "")
    (request,) = service.requests
    assert request.command == pb.Command(name="sh", args=["-c", 'echo "$HOME"', "--", "--url", ""])


async def test_start_sends_standard_input_only_when_told_to(cli, service):
    await cli("start", "cat", stdin=b"kept")
    await cli("start", "--stdin", "cat", stdin=b"se\0nt\xff")
    assert [request.stdin for request in service.requests] == [b"", b"se\0nt\xff"]


async def test_more_standard_input_than_a_request_carries_is_an_error(cli, service):
    result = await cli("start", "--stdin", "cat", stdin=bytes(1024 * 1024 + 1))
    assert result.status == 1
    assert "longer than 1 MiB" in result.stderr
    assert service.requests == []


async def test_start_as_json(cli, service):
    service.warnings = ["beware"]
    result = await cli("start", "--format", "json", "--pids-max", "9", "true")
    answer = json.loads(result.stdout)
    assert answer["job_id"] in service.jobs
    assert answer["status"]["status"] == "STATUS_RUNNING"
    assert answer["limits"]["pids_max"] == 9
    assert answer["warnings"] == ["beware"]


async def test_a_refused_start_is_a_sentence(cli, service):
    service.refusals["Start"] = [
        Refusal(grpc.StatusCode.FAILED_PRECONDITION, "there is no command 'nope' in PATH")
    ]
    result = await cli("start", "nope", "a b")
    assert result == Result(
        1, b"", "jobworker-cli: cannot start nope 'a b': there is no command 'nope' in PATH\n"
    )


async def test_a_start_whose_answer_was_lost_can_be_asked_for_again(cli, service):
    service.refusals["Start"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed")]
    result = await cli("start", "true")
    assert result.status == 1
    assert f"--request-id {service.requests[0].request_id} finds it" in result.stderr


async def test_the_same_request_id_finds_the_same_job(cli, service):
    first = await cli("start", "--request-id", "x", "true")
    second = await cli("start", "--request-id", "x", "true")
    assert first.stdout == second.stdout
    assert len(service.jobs) == 1


async def test_an_id_that_cannot_be_written_is_not_lost(cli, service, full):
    result = await cli("start", "true", stdout=full)
    (job_id,) = service.jobs
    assert result.status == 1
    assert f"the job {job_id} was started" in result.stderr


# stop and status


async def test_stop_is_silent_and_sends_the_grace(cli, service):
    job = service.add(status=RUNNING)
    assert await cli("stop", "--grace", "1m30s", job.job.id) == Result(0, b"", "")
    assert service.requests[-1].grace.ToMilliseconds() == 90_000
    assert job.finished


class Patient(ScriptedService):
    """Does not come to the end of a Stop."""

    def __init__(self) -> None:
        super().__init__()
        self.stopping = asyncio.Event()

    async def Stop(self, request: pb.StopRequest, context: Any) -> pb.StopResponse:
        self.stopping.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_ctrl_c_while_a_job_is_stopped_says_that_the_stop_goes_on(cli, serve):
    service = Patient()
    cli.url = (await serve(service)).url
    process = await cli.start("stop", NO_JOB)
    await asyncio.wait_for(service.stopping.wait(), PATIENCE)
    process.send_signal(signal.SIGINT)
    result = await finish(process)
    assert result.status == 130
    assert result.stderr == (
        "jobworker-cli: interrupted; the server goes on stopping the job if the request has "
        f"reached it: jobworker-cli status {NO_JOB} says whether it has ended\n"
    )


async def test_stop_as_json_says_which(cli, service):
    job_id = service.add().job.id
    result = await cli("--format", "json", "stop", job_id)
    assert json.loads(result.stdout) == {"job_id": job_id}


async def test_stop_sends_the_signal(cli, service):
    job = service.add(status=RUNNING)
    assert await cli("stop", "--signal", "usr1", job.job.id) == Result(0, b"", "")
    assert service.requests[-1] == pb.StopRequest(job_id=job.job.id, signal=signal.SIGUSR1)


# signal


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["RTMIN+1"], {"signal": signal.SIGRTMIN + 1}),
        (["--all", "sigusr1"], {"signal": signal.SIGUSR1, "all": True}),
    ],
)
async def test_signal_is_silent_and_sends_the_number(cli, service, arguments, sent):
    job_id = service.add(status=RUNNING).job.id
    assert await cli("signal", *arguments, job_id) == Result(0, b"", "")
    assert service.requests[-1] == pb.SignalRequest(job_id=job_id, **sent)


async def test_signal_as_json_says_which(cli, service):
    job_id = service.add(status=RUNNING).job.id
    result = await cli("signal", "--format", "json", "HUP", job_id)
    assert json.loads(result.stdout) == {"job_id": job_id}


async def test_a_finished_job_cannot_be_signalled(cli, service):
    job_id = service.add().job.id
    result = await cli("signal", "HUP", job_id)
    assert result == Result(
        1, b"", f"jobworker-cli: cannot signal job {job_id}: job {job_id} has ended\n"
    )


# wait


def exited(code: int) -> pb.StatusDetail:
    return pb.StatusDetail(status=pb.STATUS_EXITED, exit_code=code, reason=pb.REASON_EXITED)


async def test_wait_and_run_end_alike_and_say_why_a_job_was_stopped(cli, service):
    job_id = (await cli("start", "--request-id", "r", "x")).stdout.decode().strip()
    await service.jobs[job_id].write(b"out")
    await service.jobs[job_id].end(STOPPED)
    said = f"jobworker-cli: job {job_id}: stopped (SIGTERM)\n"
    assert await cli("wait", job_id) == Result(143, b"143\n", said)
    assert await cli("run", "--request-id", "r", "x") == Result(143, b"out", said)


async def test_wait_returns_when_the_job_has_ended(cli, service):
    job = service.add(status=RUNNING)
    process = await cli.start("wait", "--timeout", "10m", job.job.id)
    await until_asked(service, pb.WaitRequest)
    assert service.requests[-1].timeout.ToSeconds() == 600
    await job.end(exited(7))
    assert await finish(process) == Result(7, b"7\n", "")


async def test_wait_for_several_prints_each_in_order_and_ends_as_the_first_that_is_not_0(
    cli, service
):
    jobs = [service.add(status=status) for status in (RUNNING, exited(5), exited(6))]
    process = await cli.start("wait", *(job.job.id for job in jobs))
    await until_asked(service, pb.WaitRequest, 3)
    await jobs[0].end()
    assert await finish(process) == Result(5, b"0\n5\n6\n", "")


async def test_a_wait_whose_time_has_passed_is_124(cli, service):
    job = service.add(status=RUNNING)
    result = await cli("wait", "--timeout", "50ms", job.job.id)
    assert (result.status, result.stdout) == (124, b"124\n")
    assert result.stderr == f"jobworker-cli: job {job.job.id} has not ended after 50ms\n"
    assert not job.finished


async def test_a_wait_for_an_unknown_job_is_125_and_the_others_are_waited_for(cli, service):
    job_id = service.add(status=exited(3)).job.id
    result = await cli("wait", NO_JOB, job_id)
    assert (result.status, result.stdout) == (125, b"3\n")
    assert f"no job has the id {NO_JOB}" in result.stderr


async def test_wait_as_json_is_an_object_a_line(cli, service):
    job_ids = [service.add(status=exited(code)).job.id for code in (0, 4)]
    result = await cli("wait", "--format", "json", *job_ids)
    assert result.status == 4
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["job_id"] for line in lines] == job_ids
    assert [line["status"]["exit_code"] for line in lines] == [0, 4]


async def test_a_wait_goes_on_after_the_restart_of_the_server(cli, service, serve, listener):
    job = service.add(status=RUNNING)
    process = await cli.start("wait", job.job.id)
    await until_asked(service, pb.WaitRequest)
    await listener.stop()
    await serve(service, port=listener.port)
    await job.end(exited(3))
    result = await finish(process)
    assert (result.status, result.stdout) == (3, b"3\n")


async def until_asked(service: ScriptedService, kind: type, times: int = 1) -> None:
    async with asyncio.timeout(PATIENCE):
        while sum(isinstance(request, kind) for request in service.requests) < times:
            await asyncio.sleep(0.01)


async def started_job(service: ScriptedService) -> Any:
    """Return the job that a run has started, once its output is followed."""
    await asyncio.wait_for(service.wait_for_followers(1), PATIENCE)
    (job,) = service.jobs.values()
    return job


@pytest.mark.parametrize("command", [("wait",), ("stats", "--follow")])
async def test_ctrl_c_on_what_follows_a_job_says_that_it_goes_on_and_how_to_come_back(
    cli, service, command
):
    job_id = service.add(status=RUNNING).job.id
    process = await cli.start(*command, job_id)
    async with asyncio.timeout(PATIENCE):
        while not service.requests:
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    result = await finish(process)
    assert result.status == 130
    assert result.stderr.startswith("jobworker-cli: interrupted; ")
    assert "goes on" in result.stderr
    assert f": jobworker-cli {' '.join(command)} {job_id} " in result.stderr


# run


async def test_run_writes_the_output_byte_for_byte_and_ends_as_the_job_does(cli, service):
    process = await cli.start("run", "--name", "n", "sh", "-c", "exit 3", "--name")
    job = await started_job(service)
    assert service.requests[0].command == pb.Command(name="sh", args=["-c", "exit 3", "--name"])
    assert service.requests[0].name == "n"
    await job.write(OUTPUT)
    await job.end(exited(3))
    assert await finish(process) == Result(3, OUTPUT, "")


async def test_run_sends_standard_input_and_shows_warnings(cli, service):
    service.warnings = ["memory.high without memory.max"]
    process = await cli.start("run", "--stdin", "sort", stdin=asyncio.subprocess.PIPE)
    process.stdin.write(b"b\na\n")
    process.stdin.close()
    await (await started_job(service)).end()
    result = await finish(process)
    assert service.requests[0].stdin == b"b\na\n"
    assert result == Result(0, b"", "jobworker-cli: warning: memory.high without memory.max\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [("CommandNotFound", 127), ("CommandNotExecutable", 126), ("UserNotFound", 125), ("", 125)],
)
async def test_run_ends_as_a_shell_does_with_what_cannot_be_started(cli, service, error, status):
    service.refusals["Start"] = [
        Refusal(grpc.StatusCode.FAILED_PRECONDITION, "it cannot be", error=error)
    ]
    result = await cli("run", "nope")
    assert result == Result(status, b"", "jobworker-cli: cannot start nope: it cannot be\n")


async def test_run_goes_on_after_the_restart_of_the_server(cli, service, serve, listener):
    process = await cli.start("run", "x")
    job = await started_job(service)
    await job.write(b"one")
    await process.stdout.readexactly(3)
    await listener.stop()
    await serve(service, port=listener.port)
    await job.write(b"two")
    await job.end(exited(9))
    assert await finish(process) == Result(9, b"two", "")


async def test_run_whose_output_breaks_for_good_is_125_and_says_where(cli, service):
    service.refusals["Output"] = [Refusal(grpc.StatusCode.INTERNAL, "broken", after=1)]
    process = await cli.start("run", "x")
    job = await started_job(service)
    await job.write(b"one")
    await process.stdout.readexactly(3)
    await job.end()
    result = await finish(process)
    assert (result.status, result.stdout) == (125, b"")
    assert "broken" in result.stderr
    assert f"jobworker-cli output --tail --offset 3 {job.job.id}" in result.stderr
    assert f"jobworker-cli stop {job.job.id}" in result.stderr


async def test_ctrl_c_detaches_run_and_says_how_to_go_on(cli, service):
    process = await cli.start("run", "x")
    job = await started_job(service)
    await job.write(b"one")
    await process.stdout.readexactly(3)
    await waits_in(process.pid, "epoll|ep_poll")
    process.send_signal(signal.SIGINT)
    result = await finish(process)
    assert result.status == 130
    for rest in ("stop", "output --tail --offset 3", "wait"):
        assert f"jobworker-cli {rest} {job.job.id}\n" in result.stderr
    assert not job.finished


async def test_a_run_whose_reader_is_gone_stops_the_job_and_says_so(cli, service):
    process = await cli.start("run", "x")
    job = await started_job(service)
    process.stdout._transport.close()
    await job.write(OUTPUT)
    await asyncio.wait_for(process.wait(), PATIENCE)
    assert process.returncode == 141
    assert f"stopping job {job.job.id}".encode() in await process.stderr.read()
    assert service.requests[-1] == pb.StopRequest(job_id=job.job.id), "as the job's own policy says"


async def test_a_run_whose_reader_is_gone_stops_the_job_also_if_nobody_reads_messages(cli, service):
    reading, writing = os.pipe()
    process = await cli.start("run", "x", stdout=writing, stderr=writing)
    os.close(writing)
    job = await started_job(service)
    os.close(reading)
    await job.write(OUTPUT)
    await asyncio.wait_for(process.wait(), PATIENCE)
    assert process.returncode == 141
    assert job.finished


async def test_a_run_that_cannot_stop_the_job_says_so_and_is_125(cli, service):
    process = await cli.start("run", "x")
    job = await started_job(service)
    service.refusals["Stop"] = [Refusal(grpc.StatusCode.INTERNAL, "it is broken")]
    process.stdout._transport.close()
    await job.write(OUTPUT)
    await asyncio.wait_for(process.wait(), PATIENCE)
    assert process.returncode == 125
    said = await process.stderr.read()
    assert f"cannot stop job {job.job.id}: the server failed: it is broken".encode() in said


async def test_a_run_whose_output_cannot_be_written_is_125(cli, service, full):
    process = await cli.start("run", "x", stdout=full)
    job = await started_job(service)
    await job.write(b"one")
    result = await finish(process)
    assert result.status == 125
    assert "ENOSPC" in result.stderr
    assert f"jobworker-cli output --tail --offset 0 {job.job.id}" in result.stderr


async def test_run_as_json_begins_with_the_start(cli, service):
    process = await cli.start("run", "--format", "json", "x")
    job = await started_job(service)
    await job.write(b"\xff\x00")
    await job.end(exited(2))
    result = await finish(process)
    first, *rest = [json.loads(line) for line in result.stdout.splitlines()]
    assert first["job_id"] == job.job.id
    assert base64.b64decode(rest[0]["output"]) == b"\xff\x00"
    assert rest[-1]["end"]["status"]["exit_code"] == 2
    assert result.status == 2


# status and what changes a job


async def test_status_is_for_people_or_json(cli, service):
    job_id = service.add(b"abc").job.id
    text = await cli("status", job_id)
    assert text.status == 0
    assert "status     exited (0)\n" in text.stdout.decode()
    assert "output     3 B\n" in text.stdout.decode()
    result = await cli("status", "--format", "json", job_id)
    assert json.loads(result.stdout)["job"]["id"] == job_id


async def test_update_sends_what_is_given_and_shows_what_is_in_force(cli, service):
    service.warnings = ["memory_high is above memory_max"]
    job = service.add(status=RUNNING)
    job.job.limits.pids_max = 9
    result = await cli("update", "--memory-max", "1G", "--no-memory-oom-group", job.job.id)
    assert service.requests[-1].limits == pb.Limits(memory_max=2**30, memory_oom_group=False)
    shown = result.stdout.decode().splitlines()
    assert shown == ["memory-max 1 GiB", "memory-oom-group no", "pids-max 9"]
    assert result.stderr == "jobworker-cli: warning: memory_high is above memory_max\n"
    assert result.status == 0


async def test_update_as_json(cli, service):
    job_id = service.add(status=RUNNING).job.id
    result = await cli("update", "--format", "json", "--pids-max", "max", job_id)
    assert json.loads(result.stdout)["limits"]["pids_max"] == 2**64 - 1


async def test_a_refused_update_is_a_sentence(cli, service):
    job_id = service.add(status=RUNNING).job.id
    why = "cannot apply pids.max to job x: the kernel refused '9': Invalid argument"
    service.refusals["UpdateLimits"] = [Refusal(grpc.StatusCode.FAILED_PRECONDITION, why)]
    result = await cli("update", "--pids-max", "9", job_id)
    message = f"jobworker-cli: cannot change the limits of job {job_id}: {why}\n"
    assert result == Result(1, b"", message)


async def test_pause_and_resume_are_silent(cli, service):
    job = service.add(status=RUNNING)
    assert await cli("pause", job.job.id) == Result(0, b"", "")
    assert job.job.paused
    assert b"running (paused)" in (await cli("status", job.job.id)).stdout
    assert await cli("resume", job.job.id) == Result(0, b"", "")
    assert not job.job.paused


@pytest.mark.parametrize("command", ["pause", "resume"])
async def test_pause_and_resume_as_json_say_which(cli, service, command):
    job_id = service.add(status=RUNNING).job.id
    result = await cli(command, "--format", "json", job_id)
    assert json.loads(result.stdout) == {"job_id": job_id}


async def test_remove_says_which_and_goes_on_after_a_failure(cli, service):
    first, alive, second = service.add(), service.add(status=RUNNING), service.add()
    lost = Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed while it was read")
    service.refusals["Remove"] = [lost]
    ids = [job.job.id for job in (first, alive, second, second)]
    result = await cli("remove", *ids)
    assert (result.status, result.stdout.decode()) == (1, f"{second.job.id}\n")
    said = result.stderr.splitlines()
    assert said[0].startswith(f"jobworker-cli: cannot remove job {first.job.id}: the connection")
    assert said[1] == (
        f"It may be removed all the same: jobworker-cli status {first.job.id} says whether it is."
    )
    (last,) = said[2:]
    assert last == (
        f"jobworker-cli: cannot remove job {alive.job.id}: it is running; stop it first: "
        f"jobworker-cli stop {alive.job.id}"
    )
    assert set(service.jobs) == {first.job.id, alive.job.id}


async def test_remove_by_force_kills_first(cli, service):
    jobs = [service.add(status=RUNNING), service.add()]
    result = await cli("remove", "-f", "--format", "json", *(job.job.id for job in jobs))
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"job_id": job.job.id} for job in jobs
    ]
    assert (result.status, result.stderr, service.jobs) == (0, "", {})
    assert service.requests[0].HasField("grace")
    assert service.requests[0].grace.ToNanoseconds() == 0


async def test_remove_does_not_try_every_job_on_a_server_that_is_not_there(cli):
    cli.url = "localhost:1"
    other = NO_JOB.replace("0", "1")
    result = await cli("remove", NO_JOB, other)
    assert (result.status, result.stdout) == (1, b"")
    assert result.stderr.startswith(f"jobworker-cli: cannot remove job {NO_JOB}, {other}: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "doing"),
    [
        (["pause"], "pause"),
        (["resume"], "resume"),
        (["update", "--pids-max", "5"], "change the limits of"),
    ],
)
async def test_what_the_server_says_in_the_same_words_is_said_once(cli, service, arguments, doing):
    job_id = service.add().job.id
    sentence = f"cannot {doing} job {job_id}: it has ended"
    refusal = Refusal(grpc.StatusCode.FAILED_PRECONDITION, sentence)
    service.refusals = {method: [refusal] for method in ("Pause", "Resume", "UpdateLimits")}
    result = await cli(*arguments, job_id)
    assert result.stderr == f"jobworker-cli: {sentence}\n"
    assert result.status == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--follow", "--interval", "99ms"], "Invalid value for '--interval': '99ms' is less than"),
        (["--interval", "5s"], "--interval is of no use without --follow"),
    ],
)
async def test_an_interval_that_cannot_be_is_wrong_usage(cli, service, arguments, hint):
    result = await cli("stats", *arguments, service.add().job.id)
    assert result.status == 2
    assert hint in result.stderr
    assert service.requests == []


async def test_the_stats_of_a_finished_job_are_a_block_also_if_followed(cli, service):
    job = service.add()
    job.job.usage.cpu_user_us = job.job.usage.cpu_system_us = 500_000
    once, followed = [await cli("stats", *flag, job.job.id) for flag in ([], ["--follow"])]
    assert followed.stdout == once.stdout
    assert b"usage      1s CPU" in followed.stdout


async def test_stats_show_one_sample(cli, service):
    job = service.add(status=RUNNING)
    job.samples = [pb.StatsResponse(memory_current=2**20, pids_current=3)]
    text = (await cli("stats", job.job.id)).stdout.decode()
    assert "memory     1 MiB\n" in text
    as_json = (await cli("stats", "--format", "json", job.job.id)).stdout
    assert json.loads(as_json)["memory_current"] == 2**20
    assert b"\n" not in as_json.rstrip(b"\n")


async def test_stats_follow_line_by_line(cli, service):
    job = service.add(status=RUNNING)
    job.samples = [pb.StatsResponse(pids_current=count) for count in (1, 2)]
    following = await cli.start("stats", "-f", "--interval", "250ms", job.job.id)
    lines = [await following.stdout.readline() for _ in range(3)]
    assert [line.split()[-2:] for line in lines] == [
        [b"PIDS", b"STATUS"],
        [b"1", b"running"],
        [b"2", b"running"],
    ]
    assert service.requests[-1].interval.ToMilliseconds() == 250
    await job.end()
    rest = await finish(following)
    assert rest.stdout.rstrip().endswith(b"exited (0)")
    assert (rest.status, rest.stderr) == (0, "")


async def test_followed_stats_as_json_are_an_object_a_line(cli, service):
    job = service.add()
    result = await cli("stats", "--follow", "--format", "json", job.job.id)
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["status"]["status"] == "STATUS_EXITED"


async def test_watch_writes_a_line_for_each_event_at_once(cli, service):
    job = service.add(status=RUNNING)
    job.job.name = "build"
    watching = await cli.start("watch", "--since-token", "0")
    service.events.tell(pb.EVENT_TYPE_SIGNALED, job.job, "user_bravo", signal=10)
    line = (await asyncio.wait_for(watching.stdout.readline(), PATIENCE)).decode()
    assert line[19:] == (f"  {job.job.id}  signaled (SIGUSR1)    running      user_bravo  build\n")
    await job.end()
    assert b"  ended                 exited (0)   -  build\n" in await asyncio.wait_for(
        watching.stdout.readline(), PATIENCE
    )


async def test_watch_as_json_has_the_token_of_each_event(cli, service):
    watching = await cli.start("watch", "--format", "json", "--owner", "user_alpha")
    first = json.loads(await asyncio.wait_for(watching.stdout.readline(), PATIENCE))
    assert (first["resume_token"], first["type"]) == ("0", "EVENT_TYPE_UNSPECIFIED")
    service.events.tell(pb.EVENT_TYPE_PAUSED, service.add(status=RUNNING).job)
    event = json.loads(await asyncio.wait_for(watching.stdout.readline(), PATIENCE))
    assert (event["resume_token"], event["type"]) == ("1", "EVENT_TYPE_PAUSED")
    assert service.requests[-1] == pb.WatchRequest(owner="user_alpha")


async def test_watching_one_job_ends_with_its_removal(cli, service):
    job = service.add()
    service.events.tell(pb.EVENT_TYPE_REMOVED, job.job)
    result = await cli("watch", "--since-token", "0", job.job.id)
    assert b"  removed  " in result.stdout
    assert (result.status, result.stderr) == (0, "")


async def test_ctrl_c_ends_a_watch_and_says_how_to_go_on(cli, service):
    job = service.add(status=RUNNING)
    watching = await cli.start("watch", "--owner", "user_alpha", "--since-token", "0", job.job.id)
    service.events.tell(pb.EVENT_TYPE_PAUSED, job.job)
    await asyncio.wait_for(watching.stdout.readline(), PATIENCE)
    await waits_in(watching.pid, "epoll|ep_poll")
    watching.send_signal(signal.SIGINT)
    result = await finish(watching)
    assert result.status == 130
    assert result.stderr == (
        "\njobworker-cli: left; jobs go on.\nTo go on from there:  "
        f"jobworker-cli watch --owner user_alpha --since-token 1 {job.job.id}\n"
    )
    async with asyncio.timeout(PATIENCE):
        await service.events.wait_for_watchers(0)


async def test_ctrl_c_while_nobody_reads_says_the_token_of_the_last_line(cli, service):
    job = service.add(status=RUNNING)
    for _ in range(2000):
        service.events.tell(pb.EVENT_TYPE_PAUSED, job.job)
    reading, writing = os.pipe()
    watching = await cli.start("watch", "--since-token", "0", stdout=writing)
    await until_full(writing)
    watching.send_signal(signal.SIGINT)
    result = await finish(watching)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    assert result.status == 130
    lines = written.count(b"\n")
    assert f"--since-token {lines}\n" in result.stderr


async def test_a_token_that_has_expired_is_a_sentence(cli, service):
    service.refusals["Watch"] = [Refusal(grpc.StatusCode.OUT_OF_RANGE, "list the jobs")]
    result = await cli("watch", "--since-token", "0")
    assert result == Result(1, b"", "jobworker-cli: cannot watch jobs: list the jobs\n")


async def test_a_token_that_is_none_is_named_by_its_flag(cli, service):
    service.refusals["Watch"] = [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "resume_token: is not one")
    ]
    result = await cli("watch", "--since-token", "x")
    assert result.stderr == "jobworker-cli: cannot watch jobs: --since-token: is not one\n"


@pytest.mark.parametrize("flag", ["--owner", "--since-token"])
async def test_a_flag_of_watch_that_is_empty_is_wrong_usage(cli, service, flag):
    result = await cli("watch", flag, "")
    assert (result.status, service.requests) == (2, [])
    assert f"Invalid value for '{flag}': it is empty" in result.stderr


@pytest.mark.parametrize(
    "command", ["stop", "status", "output", "pause", "resume", "stats", "remove", "watch"]
)
async def test_an_unknown_job_is_a_sentence_and_status_1(cli, command):
    result = await cli(command, NO_JOB)
    assert result.status == 1
    assert result.stdout == b""
    assert result.stderr.startswith("jobworker-cli: cannot ")
    assert result.stderr.endswith(f"job {NO_JOB}: no job has the id {NO_JOB}\n")


async def test_the_flag_wins_over_the_variable(cli, service, pki):
    job_id = service.add().job.id
    url, cli.url = cli.url, "localhost:1"
    assert (await cli("--url", f"https://{url}", "status", job_id)).status == 0


async def test_an_answer_that_cannot_be_written_is_an_error(cli, service, full):
    result = await cli("status", service.add().job.id, stdout=full)
    assert result.status == 1
    assert result.stderr == "jobworker-cli: cannot write the answer: No space left on device\n"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of something that takes connections and says nothing."""
    with socket.create_server(("localhost", 0)) as listener:
        yield listener.getsockname()[1]


async def test_a_person_is_told_what_is_waited_for(cli, silent):
    cli.url = f"localhost:{silent}"
    reading, writing = os.openpty()
    process = await cli.start("status", NO_JOB, stderr=writing)
    os.close(writing)
    said = await asyncio.wait_for(asyncio.to_thread(os.read, reading, 1000), PATIENCE)
    assert said == f"jobworker-cli: waiting for {cli.url} to answer; Ctrl-C gives up\r\n".encode()
    process.send_signal(signal.SIGINT)
    await process.wait()
    os.close(reading)


# output


async def test_output_is_byte_exact(cli, service):
    job_id = service.add(OUTPUT).job.id
    assert await cli("output", job_id) == Result(0, OUTPUT, "")
    assert await cli("output", "--offset", "100", job_id) == Result(0, OUTPUT[100:], "")


async def test_tail_writes_what_comes_until_the_job_has_ended(cli, service):
    job = service.add(b"one\n", RUNNING)
    process = await cli.start("output", "--tail", job.job.id)
    assert await process.stdout.readexactly(4) == b"one\n"
    await job.write(b"two\n")
    assert await process.stdout.readexactly(4) == b"two\n"
    await job.end()
    assert await finish(process) == Result(0, b"", "")


async def test_output_without_tail_of_a_running_job_ends(cli, service):
    assert await cli("output", service.add(b"one", RUNNING).job.id) == Result(0, b"one", "")


async def test_output_as_json_is_one_object_a_line(cli, service):
    job_id = service.add(b"\xff\x00").job.id
    lines = [
        json.loads(line)
        for line in (await cli("output", "--format=json", job_id)).stdout.splitlines()
    ]
    assert base64.b64decode(lines[0]["output"]) == b"\xff\x00"
    assert lines[-1]["end"]["size"] == 2


async def test_ctrl_c_detaches_and_says_how_to_go_on(cli, service):
    job = service.add(b"one", RUNNING)
    process = await cli.start("output", "-f", job.job.id)
    await process.stdout.readexactly(3)
    await waits_in(process.pid, "epoll|ep_poll")
    process.send_signal(signal.SIGINT)
    result = await finish(process)
    assert result.status == 130
    assert f"jobworker-cli stop {job.job.id}" in result.stderr
    assert f"jobworker-cli output --tail --offset 3 {job.job.id}" in result.stderr
    assert "interrupted" not in result.stderr, "that it has detached says it"
    assert not job.finished
    await asyncio.wait_for(service.wait_for_followers(0), PATIENCE)


async def test_ctrl_c_is_heard_while_nobody_reads_the_output(cli, service):
    job_id = service.add(OUTPUT).job.id
    reading, writing = os.pipe()
    process = await cli.start("output", job_id, stdout=writing)
    await until_full(writing)
    process.send_signal(signal.SIGINT)
    result = await finish(process)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    assert result.status == 130
    assert written == OUTPUT[: len(written)]
    assert f"--offset {len(written)} " in result.stderr, "what was written of a message counts"


async def test_an_offset_beyond_the_end_is_said_to_be(cli, service):
    job_id = service.add(b"one").job.id
    said = "jobworker-cli: the output has only 3 bytes; byte 4 is beyond its end\n"
    assert await cli("output", "--since-offset", "4", job_id) == Result(0, b"", said)
    assert await cli("output", "--since-offset", "3", job_id) == Result(0, b"", "")


async def test_a_reader_that_is_gone_ends_it_quietly_as_by_sigpipe(cli, service):
    job_id = service.add(OUTPUT).job.id
    reading, writing = os.pipe()
    process = await cli.start("output", job_id, stdout=writing)
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 1)
    os.close(reading)
    assert await finish(process) == Result(141, b"", "")


async def test_a_pipe_that_is_non_blocking_gets_every_byte(cli, service):
    job_id = service.add(OUTPUT).job.id
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    process = await cli.start("output", job_id, stdout=writing.fileno())
    writing.close()
    received = bytearray()
    reading.setblocking(False)
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(reading, 100_000):
        received += data
    reading.close()
    assert (await finish(process)).status == 0
    assert received == OUTPUT


async def test_a_full_disk_is_an_error(cli, service, full):
    job_id = service.add(OUTPUT).job.id
    result = await cli("output", job_id, stdout=full)
    assert result.status == 1
    assert (
        result.stderr
        == "jobworker-cli: cannot write the output: No space left on device (ENOSPC)\n"
    )


async def test_a_lost_connection_is_taken_up_again(cli, service, serve, listener):
    job = service.add(b"one", RUNNING)
    process = await cli.start("output", "--tail", job.job.id)
    await process.stdout.readexactly(3)
    await listener.stop()
    await serve(service, port=listener.port)
    await job.write(b"two")
    await job.end()
    assert await finish(process) == Result(0, b"two", "")


async def test_a_server_that_stays_away_is_told_of_once(cli, service):
    """Each attempt is refused until it has been said; the first call counts as any other."""
    job = service.add(b"one")
    away = Refusal(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    service.refusals["Output"] = [away] * 100
    process = await cli.start("output", job.job.id)
    said = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    service.refusals["Output"].clear()
    assert said == (
        b"jobworker-cli: the output is interrupted at byte 0, trying again for up to 60 s: "
        b"the server is shutting down\n"
    )
    assert await finish(process) == Result(0, b"one", "")


async def test_what_a_cap_has_dropped_is_said_on_standard_error(cli, service):
    job = service.add(OUTPUT)
    job.dropped = 5000
    result = await cli("output", job.job.id)
    assert result == Result(
        0,
        OUTPUT[5000:],
        "jobworker-cli: 5000 bytes of the output are missing, from byte 0 to byte 5000: the cap "
        "dropped them\n",
    )
    assert await cli("output", "--offset", "5000", job.job.id) == Result(0, OUTPUT[5000:], "")


async def test_each_stream_goes_to_its_own_descriptor_or_the_one_picked_to_stdout(cli, service):
    job = service.add(b"to stdout")
    job.split(b"to stderr")
    job_id = job.job.id
    assert await cli("output", "--tail", job_id) == Result(0, b"to stdout", "to stderr")
    assert await cli("output", "--offset", "3", job_id) == Result(0, b"stdout", "stderr")
    assert await cli("output", "--stream", "stdout", job_id) == Result(0, b"to stdout", "")
    assert await cli("output", "--stream", "stderr", job_id) == Result(0, b"to stderr", "")


async def test_both_streams_as_json_are_told_apart(cli, service):
    job = service.add(b"o")
    job.split(b"e")
    result = await cli("output", "--format", "json", job.job.id)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    found = {(line["stream"], base64.b64decode(line["output"])) for line in lines}
    assert found == {("stdout", b"o"), ("stdout", b""), ("stderr", b"e"), ("stderr", b"")}
    assert result.stderr == ""


async def test_standard_error_that_is_not_kept_apart_cannot_be_picked(cli, service):
    job_id = service.add(OUTPUT).job.id
    result = await cli("output", "--stream", "stderr", job_id)
    assert (result.status, result.stdout) == (1, b"")
    assert "--split-stderr" in result.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--last", "0"], b""),
        (["--last", "2"], b"two\nthree"),
        (["--last-bytes", "3"], b"ree"),
        (["--since-offset", "4"], b"two\nthree"),
    ],
)
async def test_output_begins_where_it_is_told_to(cli, service, flags, expected):
    job_id = service.add(b"one\ntwo\nthree").job.id
    assert await cli("output", *flags, job_id) == Result(0, expected, "")


async def test_the_last_of_both_streams_is_the_last_of_each_and_no_gap_is_told_of(cli, service):
    job = service.add(b"one\ntwo\n")
    job.split(b"three\nfour\nfive\n")
    assert await cli("output", "--last", "1", job.job.id) == Result(0, b"two\n", "five\n")
    assert await cli("output", "--last-bytes", "7", job.job.id) == Result(
        0, b"ne\ntwo\n", "r\nfive\n"
    )


async def test_the_last_of_an_output_begins_with_what_a_cap_has_left_at_most(cli, service):
    job = service.add(b"one\ntwo\nthree\n")
    job.dropped = 4
    for flags in (("--last", "9"), ("--last-bytes", "99")):
        assert await cli("output", *flags, job.job.id) == Result(0, b"two\nthree\n", "")


async def test_output_cannot_begin_in_two_places(cli):
    result = await cli("output", "--last", "1", "--since-offset", "4", NO_JOB)
    assert result.status == 2
    assert "--since-offset cannot be combined with --last" in result.stderr


async def test_a_server_that_goes_away_before_it_says_whether_there_are_two_is_asked_again(
    cli, service
):
    job = service.add(b"o")
    job.split(b"e")
    service.refusals["Status"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "shutting down")]
    assert await cli("output", job.job.id) == Result(0, b"o", "e")


# Connections that do not come about: the words are grpcio's, the advice is ours


async def advice(cli: Cli) -> str:
    result = await cli("status", NO_JOB)
    assert result.status == 1
    assert result.stdout == b""
    start = f"jobworker-cli: cannot get the status of job {NO_JOB}: cannot reach the server at "
    assert result.stderr.startswith(start), result.stderr
    assert result.stderr.count("\n") == 1, "one sentence, and no log of gRPC's"
    return result.stderr


async def test_nobody_listens(cli):
    with socket.create_server(("localhost", 0)) as unused:
        cli.url = f"localhost:{unused.getsockname()[1]}"
    assert "connection refused" in await advice(cli)


async def test_a_host_that_does_not_exist(cli):
    cli.url = "nowhere.invalid"
    assert "check the URL" in await advice(cli)


async def test_an_authority_that_did_not_sign_the_servers_certificate(cli, tmp_path):
    cli.ca = tmp_path / "other.crt"
    trustme.CA().cert_pem.write_to_path(str(cli.ca))
    result = await cli("status", NO_JOB)
    assert result.status == 1
    assert f"its certificate was not signed by the authority in {cli.ca}" in result.stderr
    assert result.stderr.count("\n") == 1, "a warning beside it would say the same"


async def test_a_key_that_everybody_can_read_is_a_warning(cli, service, pki):
    _, key = pki.issue("careless")
    key.chmod(0o644)
    cli.user = "careless"
    result = await cli("status", service.add().job.id)
    assert result.status == 0
    assert result.stderr.startswith("jobworker-cli: warning: ")
    assert str(key) in result.stderr


async def test_a_client_certificate_that_the_server_does_not_know(cli, pki, serve, tmp_path):
    other = type(pki)(tmp_path)
    other.issue("user_alpha")
    cli.pki = other
    cli.ca = combined(tmp_path / "both.crt", pki.ca, other.ca)
    assert "does not accept the client certificate" in await advice(cli)


async def test_a_server_certificate_for_another_name(cli, pki, serve, service):
    pki.issue("elsewhere", "elsewhere.example")
    cli.url = (await serve(service, certificate="elsewhere")).url
    assert "not for the name in the URL" in await advice(cli)


async def test_a_server_certificate_that_has_expired(cli, pki, serve, service):
    pki.issue("expired", "localhost", expired=True)
    cli.url = (await serve(service, certificate="expired")).url
    assert "has expired" in await advice(cli)


async def test_a_client_certificate_that_has_expired_is_found_here(cli, pki):
    pki.issue("late", expired=True)
    cli.user = "late"
    result = await cli("status", NO_JOB)
    assert result.status == 1
    assert "late.crt" in result.stderr
    assert "expired" in result.stderr


async def test_a_server_without_tls(cli, serve, service):
    cli.url = (await serve(service, tls=False)).url
    assert "does not speak TLS" in await advice(cli)


def combined(path: Path, *certificates: Path) -> Path:
    path.write_bytes(b"".join(certificate.read_bytes() for certificate in certificates))
    return path


# list


def add_jobs(service, count, **fields):
    jobs = [service.add(**fields).job for _ in range(count)]
    for number, job in enumerate(jobs):
        job.name = f"job{number}"
        job.created_at.FromSeconds(1_700_000_000 + number)
    return jobs


async def test_list_shows_jobs_newest_first_under_names(cli, service):
    first, second = add_jobs(service, 2)
    result = await cli("list")
    lines = result.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["JOB", second.id, first.id]
    assert "exited (0)" in lines[1]
    assert (result.status, result.stderr) == (0, "")


async def test_list_follows_pages_by_itself_and_says_if_there_are_more(cli, service):
    jobs = add_jobs(service, 8)
    service.page = 3
    everything = await cli("list", "-q", "--all")
    assert everything.stdout.decode().split() == [job.id for job in reversed(jobs)]
    assert everything.stderr == ""
    some = await cli("list", "-q", "--limit", "5")
    assert some.stdout.decode().split() == [job.id for job in reversed(jobs[3:])]
    assert "more than 5" in some.stderr
    assert "--all" in some.stderr
    exact = await cli("list", "-q", "--limit", "8")
    assert len(exact.stdout.split()) == 8
    assert exact.stderr == ""


async def test_list_as_json_is_an_object_a_line(cli, service):
    jobs = add_jobs(service, 2)
    result = await cli("list", "--format", "json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [job["id"] for job in found] == [job.id for job in reversed(jobs)]
    assert found[0]["status"]["status"] == "STATUS_EXITED"


async def test_list_sends_what_is_asked_for(cli, service):
    words = "--status running --status lost --owner o --name n --label a=1 --label b=2=3"
    times = ("--since", "2026-01-31T08:00:00Z", "--until", "2026-02-01T08:00:00+01:00")
    await cli("list", *words.split(), *times)
    (request,) = service.requests
    assert [*request.statuses] == [pb.STATUS_RUNNING, pb.STATUS_LOST]
    assert (request.owner, request.name) == ("o", "n")
    assert dict(request.labels) == {"a": "1", "b": "2=3"}
    assert request.created_after.ToJsonString() == "2026-01-31T08:00:00Z"
    assert request.created_before.ToJsonString() == "2026-02-01T07:00:00Z"


async def test_list_asks_for_all_that_have_ended_with_one_word(cli, service):
    await cli("list", "--status", "finished")
    (request,) = service.requests
    assert [*request.statuses] == [pb.STATUS_STOPPED, pb.STATUS_EXITED, pb.STATUS_LOST]


async def test_list_of_no_jobs_has_the_names_of_the_columns_alone(cli, service):
    assert (await cli("list")).stdout.split()[0] == b"JOB"
    assert (await cli("list", "-q")).stdout == b""
    assert (await cli("list", "--format", "json")).stdout == b""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--status", "sleeping"], "running"),
        (["--since", "yesterday"], "2h"),
        (["--label", "k"], "KEY=VALUE"),
        (["--label", "k=1", "--label", "k=2"], "no job has both"),
        (["--limit", "0"], "nothing"),
        (["--limit", "1", "--all"], "exclude"),
    ],
)
async def test_list_refuses_what_cannot_be_meant(cli, service, arguments, said):
    result = await cli("list", *arguments)
    assert result.status == 2
    assert said in result.stderr
    assert service.requests == []


async def test_list_says_what_the_server_says_in_the_words_of_the_command_line(cli, service):
    service.refusals["List"] = [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "created_after: is too early")
    ]
    result = await cli("list", "--since", "2h")
    assert result.status == 1
    assert "cannot list jobs: --since: is too early" in result.stderr


async def test_what_the_server_says_of_the_same_thing_is_not_said_twice(cli, service):
    job_id = service.add(status=RUNNING).job.id
    too_many = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "cannot start the job: 3 jobs run here")
    unmet = Refusal(
        grpc.StatusCode.FAILED_PRECONDITION, f"cannot apply memory.max to job {job_id}: no memory"
    )
    service.refusals |= {"Start": [too_many], "UpdateLimits": [unmet]}
    said = (await cli("start", "sleep", "3")).stderr
    assert said == "jobworker-cli: cannot start sleep 3: 3 jobs run here\n"
    said = (await cli("update", "--memory-max", "1G", job_id)).stderr
    assert said == f"jobworker-cli: cannot apply memory.max to job {job_id}: no memory\n"
