"""Stopping, waiting for and signalling real jobs, and starting one once, whatever is in the way."""

import asyncio
import contextlib
import json
import signal

import grpc
import pytest

from jobworker.job import JobSpec, Reason, Service, State
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import Gate, sh
from tests.support.shim import signal_shim
from tests.support.waiting import PATIENCE, until


@pytest.fixture
def changes():
    return []


@pytest.fixture
async def service(tmp_path, cgroup_root, changes):
    async with Service(
        log_dir=tmp_path / "log",
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
        cgroup_root=cgroup_root,
        on_change=changes.append,
    ) as service:
        yield service


def script(text, **fields):
    return JobSpec(command="sh", args=("-c", text), **fields)


async def says(job, words):
    """Return when a job has written `words`."""
    async with asyncio.timeout(PATIENCE):
        said = b""
        with job.stream_output() as chunks:
            async for chunk in chunks:
                said += chunk.data
                if words in said:
                    return
    raise AssertionError(f"it has ended, and said {said!r}")


NAMES = 'for s in HUP USR1 USR2 TERM INT; do trap "echo got $s" $s; done; echo ready'
LISTEN = f"{NAMES}; while :; do sleep 0.02; done"


# Stopping


async def test_the_signal_of_a_stop_is_sent_instead_of_the_jobs_own(service):
    job = await service.start_job(script(LISTEN))
    await says(job, b"ready")
    stop = asyncio.create_task(service.stop_job(job.id, signal=signal.SIGUSR2, grace=3600))
    await says(job, b"got USR2")
    await service.stop_job(job.id, grace=0)
    await stop
    assert (job.status.state, job.status.signal) == (State.STOPPED, 9)
    assert b"got TERM" not in await job.output()


async def test_every_signal_of_several_stops_is_sent_and_the_first_kill_counts(service):
    job = await service.start_job(script(LISTEN))
    await says(job, b"ready")
    first = asyncio.create_task(service.stop_job(job.id, signal=signal.SIGUSR1, grace=3600))
    await says(job, b"got USR1")
    second = asyncio.create_task(service.stop_job(job.id, signal=signal.SIGUSR2, grace=7200))
    await says(job, b"got USR2")
    third = asyncio.create_task(service.stop_job(job.id, grace=0.05))
    async with asyncio.timeout(PATIENCE):
        ended = await asyncio.gather(first, second, third)
    assert {each.record.status for each in ended} == {job.status}
    assert (job.status.state, job.status.signal) == (State.STOPPED, 9)


async def test_a_stop_of_a_job_that_exits_at_that_instant_has_one_answer(
    service, tmp_path, changes
):
    """200 jobs end by themselves while each is stopped twice: one of the two, the same for all."""
    ended = []
    for batch in range(10):
        gate = Gate(tmp_path / f"gate-{batch}")
        jobs = [await service.start_job(script(f"{gate.wait}; exit 3")) for _ in range(20)]
        asked = [
            asyncio.gather(
                service.stop_job(job.id, signal=signal.SIGTERM, grace=3600),
                service.stop_job(job.id, signal=signal.SIGINT, grace=3600),
                service.wait_job(job.id),
            )
            for job in jobs
        ]
        gate.open()
        async with asyncio.timeout(PATIENCE):
            told = await asyncio.gather(*asked)
        gate.close()
        for job, (one, other, waited) in zip(jobs, told, strict=True):
            recorded = (await service.fetch_job(job.id)).record.status
            assert one.record.status == other.record.status == waited == recorded
            assert recorded.state in (State.EXITED, State.STOPPED)
            assert (recorded.state is State.STOPPED) == (recorded.reason is Reason.STOPPED)
            if recorded.state is State.EXITED:
                assert recorded.exit_code == 3
        ended += [job.id for job in jobs]
    assert sorted(each.job.id for each in changes if each.event == "ended") == sorted(ended)


# Signals


async def test_a_signal_reaches_the_main_process_alone_or_all(service):
    """The main process waits for its child, which says what it gets as well."""
    child = 'for s in USR1 USR2; do trap "echo child $s" $s; done; echo child up; '
    loop = "while :; do sleep 0.02; done"
    job = await service.start_job(script(f"setsid sh -c '{child}{loop}' & {NAMES}; {loop}"))
    await says(job, b"child up")
    await says(job, b"ready")
    await service.signal_job(job.id, signal.SIGUSR1)
    await says(job, b"got USR1")
    await service.signal_job(job.id, signal.SIGUSR2, all_processes=True)
    await says(job, b"got USR2")
    await says(job, b"child USR2")
    assert b"child USR1" not in await job.output()
    await service.signal_job(job.id, signal.SIGKILL)
    status = await asyncio.wait_for(service.wait_job(job.id), PATIENCE)
    assert (status.state, status.signal, status.reason) == (State.EXITED, 9, Reason.SIGNALED)


async def test_a_paused_job_hears_a_signal_when_it_goes_on_but_sigkill_at_once(service):
    job = await service.start_job(script(LISTEN))
    await says(job, b"ready")
    await service.pause_job(job.id)
    await service.signal_job(job.id, signal.SIGUSR1)
    assert b"got" not in await job.output()
    await service.resume_job(job.id)
    await says(job, b"got USR1")
    await service.pause_job(job.id)
    await service.signal_job(job.id, signal.SIGKILL)
    status = await asyncio.wait_for(service.wait_job(job.id), PATIENCE)
    assert (status.state, status.signal) == (State.EXITED, 9)


async def test_a_signal_to_an_orphan_and_its_line_in_the_audit_log(server):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(LISTEN))).job_id
        output = running.log_dir / job_id / "output"
        await until(lambda: b"ready" in output.read_bytes())
        signal_shim(running.run_dir, signal.SIGKILL)
        await client.signal(job_id, signal.SIGHUP)
        await until(lambda: b"got HUP" in output.read_bytes())
        await client.signal(job_id, signal.SIGUSR1, all_processes=True)
        await until(lambda: b"got USR1" in output.read_bytes())
        await client.stop(job_id, grace=0)
    audit = (running.state_dir / "audit.log").read_text().splitlines()
    lines = [line for line in map(json.loads, audit) if line["event"] == "signaled"]
    assert [(line["job_id"], line["user"], line["sent"]) for line in lines] == [
        (job_id, "user_alpha", signal.SIGHUP),
        (job_id, "user_alpha", signal.SIGUSR1),
    ]


# Over the wire


async def test_waits_and_stops_over_the_wire(server, gate):
    running = server()
    async with running.client() as client, running.client("user_bravo") as bravo:
        job_id = (await client.start(sh(f"{gate.wait}; exit 6"))).job_id
        for seconds in (0, 0.01):
            assert (await bravo.wait(job_id, seconds)).status == pb.STATUS_RUNNING
        waits = [asyncio.create_task(bravo.wait(job_id)) for _ in range(300)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bravo.signal(job_id, signal.SIGUSR1)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.signal(job_id, 65)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith("signal: 65")
        gate.open()
        statuses = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE)
        assert {status.exit_code for status in statuses} == {6}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.signal(job_id, signal.SIGUSR1)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_signal_of_a_stop_and_whom_a_signal_is_for_arrive_over_the_wire(server):
    loop = "while :; do sleep 0.02; done"
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"trap 'exit 4' USR1; echo ready; {loop}"))).job_id
        await until(lambda: b"ready" in (running.log_dir / job_id / "output").read_bytes())
        await client.stop(job_id, signal=signal.SIGUSR1, grace=1000)
        status = await client.wait(job_id, 0)
        assert (status.status, status.exit_code) == (pb.STATUS_STOPPED, 4)

        child = f"trap 'exit 5' USR1; echo child up; {loop}"
        main = f'sh -c "{child}" & trap "" USR1; echo ready; wait $!'
        job_id = (await client.start(sh(main))).job_id
        output = running.log_dir / job_id / "output"
        await until(lambda: b"child up" in output.read_bytes() and b"ready" in output.read_bytes())
        await client.signal(job_id, signal.SIGUSR1, all_processes=True)
        assert (await client.wait(job_id)).exit_code == 5


async def test_a_wait_outlives_servers_that_are_killed_or_terminated(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 6"))).job_id
        waits = [asyncio.create_task(client.wait(job_id, seconds)) for seconds in (None, 600)]
        assert (await client.wait(job_id, 0)).status == pb.STATUS_RUNNING
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(running.restart)
        async with running.client() as another:
            assert (await another.wait(job_id, 0)).status == pb.STATUS_RUNNING
        assert await asyncio.to_thread(running.terminate) == 0
        gate.open()
        await until((running.log_dir / job_id / "exit.json").exists)
        await asyncio.to_thread(running.restart)
        statuses = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE)
        assert [status.exit_code for status in statuses] == [6, 6]


async def test_thousands_who_ask_at_the_same_instant_are_all_answered(server):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh("exit 6"))).job_id
        await client.wait(job_id)
        running.process.send_signal(
            signal.SIGSTOP
        )  # So that all calls are there before one is taken.
        try:
            waits = [asyncio.create_task(client.wait(job_id, 0)) for _ in range(2000)]
            await asyncio.wait(waits, timeout=1)
        finally:
            running.process.send_signal(signal.SIGCONT)
        statuses = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE)
    assert {status.exit_code for status in statuses} == {6}


# One request, one job


async def start_until_answered(client, request):
    """Start a job as a client does that asks again until it has an answer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return (await client.start(request)).job_id
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


async def test_fifty_starts_of_one_request_are_one_job_also_while_the_server_is_killed(server):
    running = server()
    request = sh("echo begun; sleep 1000", request_id="r", stdin=b"x" * 1000)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(running.client()) for _ in range(5)]
        starts = [
            asyncio.create_task(start_until_answered(clients[n % len(clients)], request))
            for n in range(50)
        ]
        await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        more = [asyncio.create_task(start_until_answered(clients[0], request)) for _ in range(10)]
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(running.restart)
        (job_id,) = set(await asyncio.gather(*starts, *more))
        assert await start_until_answered(clients[1], request) == job_id
        assert [path.name for path in running.log_dir.iterdir()] == [job_id]
        request.stdin = b"y" * 1000
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients[0].start(request)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        await clients[0].stop(job_id, grace=0)
        request.stdin = b"x" * 1000
        assert await start_until_answered(clients[2], request) == job_id
    assert (running.log_dir / job_id / "output").read_bytes() == b"begun\n"


async def test_a_job_says_that_a_stop_is_under_way(server):
    running = server()
    async with running.client() as client:
        script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.02; done"
        job_id = (await client.start(sh(script))).job_id
        async for message in client.output(job_id, tail=True):
            if b"ready" in message.output:
                break
        assert not (await client.status(job_id)).job.stopping
        stop = asyncio.create_task(client.stop(job_id, grace=600))
        async for message in client.output(job_id, tail=True):
            if b"asked" in message.output:
                break
        assert (await client.status(job_id)).job.stopping
        (listed,) = [job async for job in client.list_jobs(pb.ListRequest())]
        assert listed.stopping
        await client.stop(job_id, grace=0)
        await stop
        assert not (await client.status(job_id)).job.stopping


# Time limits


async def test_a_job_that_ignores_the_end_of_its_time_is_killed_without_the_server(server):
    running = server()
    async with running.client() as client:
        request = sh("sleep 1000")
        request.stop.signal = signal.SIGURG  # which is ignored from the first instruction on
        request.timeout.FromMilliseconds(400)
        request.stop.grace.FromMilliseconds(300)
        job_id = (await client.start(request)).job_id
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(running.wait_for_end, job_id)
        await asyncio.to_thread(running.restart)
        status = await client.wait(job_id)
        assert (status.status, status.reason) == (pb.STATUS_STOPPED, pb.REASON_TIMED_OUT)
        assert status.signal == signal.SIGKILL


# The command line


def test_run_ends_as_the_job_does(server):
    running = server()
    result = running.cli("run", "--stdin", "sh", "-c", "cat; exit 42", stdin=b"\xff\x00\n")
    assert (result.returncode, result.stdout, result.stderr) == (42, b"\xff\x00\n", b"")
    result = running.cli("run", "sh", "-c", "kill -SEGV $$")
    assert (result.returncode, result.stdout) == (139, b"")


def test_run_of_what_cannot_be_executed_ends_as_in_a_shell(server, tmp_path):
    running = server()
    plain = tmp_path / "plain"
    plain.write_text("no program\n")
    result = running.cli("run", "no-such-command")
    assert (result.returncode, result.stdout) == (127, b"")
    assert b"no-such-command" in result.stderr
    assert running.cli("run", str(plain)).returncode == 126
    assert running.cli("run", "--user", "no-such-user", "true").returncode == 125


async def test_run_outlives_the_server(server, gate):
    running = server()
    process = await asyncio.create_subprocess_exec(
        *running.cli_command("run", "sh", "-c", f"echo one; {gate.wait}; echo two; exit 7"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"one\n"
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(running.restart)
        gate.open()
        stdout, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert (process.returncode, stdout) == (7, b"two\n")
