"""The life of the shim itself: its start, its servers' deaths, its leaving."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.errors import ShimUnavailable
from jobworker.shim import Client, read_exit_record, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Host

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


async def test_jobs_outlive_a_killed_server_and_a_new_one_finds_them(host: Host) -> None:
    script = (
        "import asyncio, sys\n"
        f"sys.path[:0] = {[str(HERE), str(ROOT)]!r}\n"
        "from pathlib import Path\n"
        "from conftest import Host\n"
        "async def main():\n"
        "    host = Host(*map(Path, sys.argv[1:]))\n"
        "    client = await host.connect()\n"
        "    await host.launch(client, 'sleep', '1000', job_id='long')\n"
        "    wait = 'until [ -e go ]; do sleep 0.01; done; exit 6'\n"
        "    where = str(host.log_dir)\n"
        "    await host.launch(client, 'sh', '-c', wait, job_id='short', working_directory=where)\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    arguments = [host.run_dir, host.log_dir, host.cgroup_root]
    server = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server, server.stdout:
        assert await asyncio.to_thread(server.stdout.readline) == b"ready\n"
        server.kill()
    (host.log_dir / "go").touch()
    record_file = host.log_dir / "short" / "exit.json"
    await host.until(record_file.exists)

    client = await host.connect()
    record = read_exit_record(host.log_dir / "short")
    assert record is not None
    assert (record.exit_code, record.stopped) == (6, False)
    assert client.jobs == {"long"}
    launched = await client.attach("long")
    signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    os.close(launched.pidfd)
    await host.until(lambda: "long" in host.records)
    assert host.records["long"].signal == signal.SIGKILL


async def test_stop_that_was_accepted_is_carried_out_without_a_server(host: Host) -> None:
    client = await host.connect()
    job = await host.launch(client, "sh", "-c", "trap '' TERM; echo ready; sleep 1000; sleep 1000")
    await host.until(lambda: b"ready" in job.output)
    await client.stop(job.id, grace=0.2)
    await client.close()
    await host.until((job.directory / "exit.json").exists)
    record = read_exit_record(job.directory)
    assert record is not None
    assert (record.signal, record.stopped) == (signal.SIGKILL, True)


async def test_every_server_hears_of_an_end(host: Host) -> None:
    first, second = await host.connect(), await host.connect()
    heard: list[str] = []
    first._on_ended = lambda _: heard.append("first")
    second._on_ended = lambda _: heard.append("second")
    await host.launch(first, "true")
    await host.until(lambda: len(heard) == 2)
    assert sorted(heard) == ["first", "second"]


async def test_shim_leaves_when_it_has_neither_job_nor_connection(host: Host) -> None:
    host.start_shim("import jobworker.shim.supervisor as s; s.FIRST_CONNECTION = 1000")
    client = await host.connect()
    job = await host.launch(client, "sleep", "1000")
    await client.close()
    other = await host.connect()
    assert other.jobs == {job.id}
    await other.close()
    os.kill(job.launched.pid, signal.SIGKILL)
    await host.until(host.shim_is_gone)
    assert read_exit_record(job.directory) is not None
    assert not (host.run_dir / wire.SOCKET_NAME).exists()


async def test_server_that_connects_as_the_shim_leaves_gets_a_new_one(host: Host) -> None:
    for _ in range(20):
        client = await host.connect()
        await client.close()
    client = await host.connect()
    _, record = await host.run(client, "true")
    assert record.exit_code == 0


async def test_two_starters_at_once_give_one_shim(host: Host) -> None:
    clients = await asyncio.gather(*(host.connect() for _ in range(8)))
    hellos = [await client._call("hello", {"version": wire.VERSION}) for client in clients]
    assert len({hello.message["ok"]["pid"] for hello in hellos}) == 1
    assert (host.run_dir / wire.LOG_NAME).read_text().count("serves") == 1


async def test_shim_waits_for_its_server_though_others_have_looked_whether_it_is_there(
    host: Host,
) -> None:
    host.start_shim("import jobworker.shim.supervisor as s; s.FIRST_CONNECTION = 1000")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(host.run_dir / wire.SOCKET_NAME))
    _, record = await host.run(await host.connect(), "true")
    assert record.exit_code == 0
    assert (host.run_dir / wire.LOG_NAME).read_text().count("serves") == 1


async def test_start_beside_a_running_shim_succeeds_and_changes_nothing(host: Host) -> None:
    client = await host.connect()
    host.start_shim()
    _, record = await host.run(client, "true")
    assert record.exit_code == 0


async def test_killed_shim_is_noticed_once_and_replaced(host: Host) -> None:
    client = await host.connect()
    host.signal_shim(signal.SIGKILL)
    await host.until(lambda: host.disconnected > 0)
    with pytest.raises(ShimUnavailable, match="is lost"):
        await host.launch(client, "true")
    await client.close()
    assert host.disconnected == 1
    assert (host.run_dir / wire.SOCKET_NAME).exists()
    _, record = await host.run(await host.connect(), "true")
    assert record.exit_code == 0


async def test_call_that_is_under_way_fails_when_the_shim_is_killed(host: Host) -> None:
    client = await host.connect()
    host.signal_shim(signal.SIGSTOP)
    launching = asyncio.create_task(host.launch(client, "true"))
    await host.until(lambda: bool(client._calls))
    host.signal_shim(signal.SIGKILL)
    with pytest.raises(ShimUnavailable):
        await launching


async def test_sigterm_ends_a_shim_without_jobs(host: Host) -> None:
    await host.connect()
    host.signal_shim(signal.SIGTERM)
    await host.until(host.shim_is_gone)
    await host.until(lambda: host.disconnected == 1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_no_signal_but_sigkill_costs_a_job(host: Host, signum: signal.Signals) -> None:
    client = await host.connect()
    job = await host.launch(client, "sleep", "1000")
    host.signal_shim(signum)
    _, record = await host.run(client, "true")
    assert record.exit_code == 0
    await client.stop(job.id, grace=0)
    record = await host.ended(job)
    assert record.stopped
    if signum is signal.SIGTERM:
        await host.until(host.shim_is_gone)
        await host.until(lambda: host.disconnected == 1)


async def test_wait_statuses_are_kept_although_the_starter_ignores_sigchld(host: Host) -> None:
    host.start_shim("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    _, record = await host.run(await host.connect(), "sh", "-c", "exit 3")
    assert record.exit_code == 3


async def test_signals_that_the_starter_ignores_or_blocks_are_normal_for_jobs(host: Host) -> None:
    host.start_shim(
        "import signal as s; [s.signal(n, s.SIG_IGN) for n in (s.SIGUSR1, s.SIGRTMIN, s.SIGTERM)];"
        "s.pthread_sigmask(s.SIG_BLOCK, s.valid_signals())"
    )
    job = await host.launch(await host.connect(), "sleep", "1000")
    assert int(job.status()["SigIgn"], 16) == int(job.status()["SigBlk"], 16) == 0
    host.signal_shim(signal.SIGTERM)
    signal.pidfd_send_signal(job.launched.pidfd, signal.SIGKILL)
    await host.until(host.shim_is_gone)
    await host.until(lambda: host.disconnected == 1)


async def test_shim_is_detached_from_its_starter(host: Host) -> None:
    await host.connect()
    pid = host.shim_pid()
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    targets = {fd: Path(f"/proc/{pid}/fd/{fd}").readlink() for fd in (0, 1, 2)}
    log = host.run_dir / wire.LOG_NAME
    assert targets == {0: Path("/dev/null"), 1: log, 2: log}


async def test_files_of_the_shim_are_only_for_its_user(host: Host) -> None:
    await host.connect()
    for name in (wire.SOCKET_NAME, wire.LOCK_NAME, wire.LOG_NAME):
        assert (host.run_dir / name).stat().st_mode & 0o777 == 0o600


async def test_start_says_what_is_in_its_way(host: Host) -> None:
    with pytest.raises(ShimUnavailable, match="No such file or directory"):
        await Client.connect(host.run_dir / "missing", print, print)
    (host.run_dir / wire.SOCKET_NAME).mkdir()
    with pytest.raises(ShimUnavailable, match="cannot"):
        await host.connect()


async def test_lock_without_a_listener_is_reported(host: Host) -> None:
    impatient = "import jobworker.shim.main as m; m._PATIENCE = 0.1"
    with (host.run_dir / wire.LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(subprocess.CalledProcessError) as raised:
            host.start_shim(impatient, stderr=subprocess.PIPE)
    assert b"holds its lock, but does not listen" in raised.value.stderr


async def test_run_directory_may_have_a_long_path(host: Host) -> None:
    long = host.run_dir / ("x" * 150)
    long.mkdir()
    host.run_dir = long
    _, record = await host.run(await host.connect(), "true")
    assert record.exit_code == 0


async def test_shim_that_nobody_connects_to_leaves(host: Host) -> None:
    host.start_shim("import jobworker.shim.supervisor as s; s.FIRST_CONNECTION = 0.1")
    await host.until(host.shim_is_gone)


async def test_shim_loads_neither_asyncio_nor_the_server(host: Host) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(wire.__file__).parents[2])!r})\n"
        "import jobworker.shim.main\n"
        "print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert not loaded & {"asyncio", "subprocess", "pathlib", "logging", "grpc", "threading"}
    ours = {name for name in loaded if name.startswith("jobworker.")}
    assert {name.split(".")[1] for name in ours} == {
        "cgroups",
        "errors",
        "garbage",
        "holes",
        "lazy",
        "shim",
        "steps",
    }


@pytest.mark.parametrize("put", [lambda _: None, Path.touch])
async def test_shim_whose_socket_was_removed_can_be_reached_again(
    host: Host, client: Client, put: Callable[[Path], None]
) -> None:
    job = await host.launch(client, "sleep", "1000")
    await client.close()
    (host.run_dir / wire.SOCKET_NAME).unlink()
    put(host.run_dir / wire.SOCKET_NAME)
    again = await host.connect()
    assert again.jobs == {job.id}
    await again.stop(job.id, grace=0)
    assert (await host.ended(job)).stopped
    assert host.shim_log().count(" serves") == 1
