"""How jobs end, are stopped, run out of time, and what is written down of it."""

from __future__ import annotations

import asyncio
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.errors import JobNotFound
from jobworker.shim import read_exit_record, wire
from tests.support.full_directory import full_directory

if TYPE_CHECKING:
    from conftest import Host, Job

    from jobworker.shim import Client

STUBBORN_TREE = """
trap '' TERM
setsid sh -c 'trap "" TERM; setsid sleep 1000 & setsid sleep 1001 & sleep 1002' &
echo ready
sleep 1003
sleep 1004
"""


LOOP = "echo ready; while :; do sleep 0.01; done"


def cmdline(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except ProcessLookupError:
        return [b""]


async def test_exit_code_is_recorded(host: Host, any_client: Client) -> None:
    job, record = await host.run(any_client, "sh", "-c", "exit 7")
    assert (record.exit_code, record.signal) == (7, None)
    assert (record.stopped, record.timed_out, record.core_dumped) == (False, False, False)
    assert record.pid == job.launched.pid
    assert record.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert record.started_at <= record.ended_at <= time.time()
    assert read_exit_record(job.directory) == record


async def test_signal_is_kept_apart_from_exit_codes(host: Host, any_client: Client) -> None:
    _, killed = await host.run(any_client, "sh", "-c", "kill -KILL $$")
    _, exited = await host.run(any_client, "sh", "-c", "exit 137")
    assert (killed.exit_code, killed.signal) == (None, signal.SIGKILL)
    assert (exited.exit_code, exited.signal) == (137, None)


@pytest.mark.parametrize("limit", ["0", "unlimited"])
async def test_core_dump_is_told_as_the_kernel_tells_it(
    host: Host, client: Client, limit: str
) -> None:
    command = ["sh", "-c", f"ulimit -c {limit}; kill -SEGV $$"]
    directory = str(host.log_dir)
    reference = subprocess.Popen(command, cwd=directory)
    _, status = os.waitpid(reference.pid, 0)
    reference.returncode = status
    _, record = await host.run(client, *command, working_directory=directory)
    assert (record.signal, record.core_dumped) == (signal.SIGSEGV, os.WCOREDUMP(status))


async def test_usage_has_the_cpu_time(host: Host, client: Client) -> None:
    _, record = await host.run(
        client, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    )
    assert record.usage["cpu_user_us"] + record.usage["cpu_system_us"] > 1000
    assert record.runtime > 0


async def test_end_is_told_after_the_record_is_written_and_the_cgroup_is_gone(
    host: Host, client: Client
) -> None:
    seen: list[object] = []
    job = await host.launch(client, "cat", "/etc/passwd")
    client._on_ended = lambda record: seen.append(
        (read_exit_record(job.directory) == record, Path(job.cgroup.path).exists())
    )
    await host.until(lambda: bool(seen))
    assert seen == [(True, False)]


async def test_daemon_left_behind_is_gone_before_the_end_is_told(
    host: Host, any_client: Client
) -> None:
    job, record = await host.run(
        any_client, "sh", "-c", "(setsid sh -c 'while :; do echo x; sleep 0.001; done' &) ; exit 3"
    )
    assert (record.exit_code, record.stopped) == (3, False)
    assert not Path(job.cgroup.path).exists()
    assert len(job.output) == record.output_size


async def test_stop_takes_a_whole_tree_that_ignores_the_signal(
    host: Host, any_client: Client
) -> None:
    job = await host.launch(any_client, "sh", "-c", STUBBORN_TREE)
    sleeps = {b"1000", b"1001", b"1002", b"1003"}
    await host.until(lambda: sleeps <= {cmdline(pid)[-1] for pid in job.cgroup.processes()})
    pidfds = [os.pidfd_open(pid) for pid in job.cgroup.processes()]
    await any_client.stop(job.id, grace=0.2)
    record = await host.ended(job)
    assert (record.signal, record.stopped, record.timed_out) == (signal.SIGKILL, True, False)
    assert record.runtime >= 0.2
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 0)[0], "a process has outlived its job"
        os.close(pidfd)


async def test_stop_signal_reaches_the_foreground_child_of_a_shell(
    host: Host, client: Client
) -> None:
    script = f"""trap 'echo shell' TERM; sh -c 'trap "echo child; exit" TERM; {LOOP}'; exit 8"""
    job = await host.launch(client, "sh", "-c", script)
    await host.until(lambda: b"ready" in job.output)
    await client.stop(job.id, grace=1000)
    record = await host.ended(job)
    words = [word for word in job.output.split() if word != b"Terminated"]
    assert words == [b"ready", b"child", b"shell"]
    assert (record.exit_code, record.stopped) == (8, True)


async def test_stop_can_use_another_signal(host: Host, client: Client) -> None:
    job = await host.launch(client, "sh", "-c", f"trap 'exit 9' HUP; {LOOP}")
    await host.until(lambda: b"ready" in job.output)
    await client.stop(job.id, signal=signal.SIGHUP, grace=1000)
    record = await host.ended(job)
    assert (record.exit_code, record.stopped) == (9, True)


async def test_stop_without_grace_kills_at_once(host: Host, client: Client) -> None:
    job = await host.launch(client, "sh", "-c", f"trap 'echo heard' TERM; {LOOP}")
    await host.until(lambda: b"ready" in job.output)
    await client.stop(job.id, grace=0)
    record = await host.ended(job)
    assert (record.signal, record.stopped) == (signal.SIGKILL, True)
    assert job.output == b"ready\n"


async def test_stopped_process_hears_the_stop_signal_and_not_only_the_kill(
    host: Host, client: Client
) -> None:
    job = await host.launch(client, "sh", "-c", "kill -STOP $$; exit 1")
    await host.until(lambda: job.status()["State"].startswith("T"))
    await client.stop(job.id, grace=1000)
    record = await host.ended(job)
    assert (record.signal, record.stopped) == (signal.SIGTERM, True)


@pytest.fixture
def elsewhere(host: Host) -> Path:
    """A cgroup that is no job's; what has moved there is killed when the host closes."""
    path = host.cgroup_root / "elsewhere"
    path.mkdir()
    return path


async def test_main_process_that_left_its_cgroup_is_stopped(
    host: Host, client: Client, elsewhere: Path
) -> None:
    script = f"trap 'exit 6' TERM; sleep 1000 & echo $$ > {elsewhere}/cgroup.procs; {LOOP}"
    job = await host.launch(client, "sh", "-c", script)
    await host.until(lambda: b"ready" in job.output)
    await client.stop(job.id, grace=1000)
    record = await host.ended(job)
    assert (record.exit_code, record.stopped, record.cgroup_error) == (6, True, "")


async def test_main_process_that_left_its_cgroup_is_killed(
    host: Host, client: Client, elsewhere: Path
) -> None:
    script = f"trap '' TERM; echo $$ > {elsewhere}/cgroup.procs; {LOOP}"
    # A signal that is ignored from the first instruction on, and not only after the trap.
    job = await host.launch(
        client, "sh", "-c", script, timeout=0.2, stop_signal=signal.SIGURG, stop_grace=0.1
    )
    record = await host.ended(job)
    assert (record.signal, record.timed_out) == (signal.SIGKILL, True)
    other = await host.launch(client, "sh", "-c", script)
    await host.until(lambda: b"ready" in other.output)
    await client.stop(other.id, grace=0)
    assert (await host.ended(other)).signal == signal.SIGKILL


async def test_job_that_made_its_cgroup_threaded_is_stopped_and_emptied(
    host: Host, client: Client
) -> None:
    cgroup = f"{host.cgroup_root}/threaded"
    script = f"""
    echo $$ > {host.cgroup_root}/cgroup.procs && echo threaded > {cgroup}/cgroup.type &&
    echo $$ > {cgroup}/cgroup.procs && trap '' TERM && {{ setsid sleep 1000 & }}
    {LOOP}"""
    job = await host.launch(client, "sh", "-c", script, job_id="threaded")
    await host.until(lambda: b"ready" in job.output)
    assert Path(cgroup, "cgroup.type").read_text() == "threaded\n"
    await client.stop(job.id, grace=0.1)
    record = await host.ended(job)
    assert (record.signal, record.stopped, record.cgroup_error) == (signal.SIGKILL, True, "")
    assert not Path(cgroup).exists()


CANNOT_KILL = """
import errno
from jobworker.cgroups.cgroup import Cgroup
from jobworker.shim import retry
retry.FIRST = 0.001
def kill(self, main=None):
    raise OSError(errno.EACCES, "cannot kill", self.path)
Cgroup.kill = kill
"""


async def test_cgroup_that_cannot_be_emptied_costs_no_end_and_is_named(host: Host) -> None:
    host.start_shim(CANNOT_KILL)
    job, record = await host.run(
        await host.connect(), "sh", "-c", "setsid sleep 1000 & exit 3", stop_grace=0.1
    )
    assert record.exit_code == 3
    assert "cannot kill" in record.cgroup_error
    assert "still has processes" in record.cgroup_error
    assert read_exit_record(job.directory) == record


async def test_second_stop_brings_the_kill_nearer(host: Host, client: Client) -> None:
    job = await host.launch(client, "sh", "-c", STUBBORN_TREE)
    await host.until(lambda: b"ready" in job.output)
    await client.stop(job.id, grace=1000)
    await client.stop(job.id, grace=0.05)
    assert (await host.ended(job)).signal == signal.SIGKILL


async def test_second_stop_does_not_put_the_kill_off(host: Host, client: Client) -> None:
    job = await host.launch(client, "sh", "-c", STUBBORN_TREE)
    await host.until(lambda: b"ready" in job.output)
    # The second is on its way before the first can have been carried out.
    await asyncio.gather(client.stop(job.id, grace=0.2), client.stop(job.id, grace=1000))
    assert (await host.ended(job)).signal == signal.SIGKILL


async def test_stop_of_a_job_that_has_ended_finds_no_job(host: Host, client: Client) -> None:
    job, before = await host.run(client, "true")
    with pytest.raises(JobNotFound):
        await client.stop(job.id)
    assert read_exit_record(job.directory) == before


async def test_job_whose_time_is_up_is_stopped_with_its_own_signal(
    host: Host, any_client: Client
) -> None:
    script = "trap 'echo asked; exit 4' USR1; while :; do sleep 0.01; done"
    job, record = await host.run(
        any_client, "sh", "-c", script, timeout=1.5, stop_signal=signal.SIGUSR1, stop_grace=1000.0
    )
    # The signal reaches the sleep too; the shell alone has a trap.
    assert b"asked" in job.output
    assert (record.exit_code, record.timed_out, record.stopped) == (4, True, False)
    assert record.runtime >= 1.5


async def test_job_that_ignores_the_end_of_its_time_is_killed(host: Host, client: Client) -> None:
    # A signal that is ignored from the first instruction on, and not only after the trap.
    _, record = await host.run(
        client, "sh", "-c", STUBBORN_TREE, timeout=0.1, stop_signal=signal.SIGURG, stop_grace=0.1
    )
    assert (record.signal, record.timed_out) == (signal.SIGKILL, True)
    assert record.runtime >= 0.2


async def test_job_that_ends_in_time_is_not_timed_out(host: Host, client: Client) -> None:
    _, record = await host.run(client, "true", timeout=1000.0)
    assert record.timed_out is False


TRACE_AND_END = """
import ctypes, os, sys, time
read, write = os.pipe()
main = os.getpid()
if os.fork() == 0:
    PTRACE_SEIZE = 0x4206
    seized = ctypes.CDLL(None).ptrace(PTRACE_SEIZE, main, 0, 0)
    os.write(write, b"1" if seized == 0 else b"0")
    time.sleep(1000)
os._exit(7 if os.read(read, 1) == b"1" else 1)
"""


async def test_main_process_that_its_child_traces_can_end(host: Host, client: Client) -> None:
    nobody = pwd.getpwnam("nobody")
    job, record = await host.run(
        client, "python3", "-c", TRACE_AND_END, uid=nobody.pw_uid, gid=nobody.pw_gid
    )
    assert (record.exit_code, record.stopped) == (7, False)
    assert not Path(job.cgroup.path).exists()


TRACE = """
import ctypes, os, sys
PTRACE_SEIZE = 0x4206
assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0) == 0
print("traced", flush=True)
sys.stdin.read()
"""


async def test_main_process_that_is_traced_from_outside_costs_nothing_and_ends_with_the_tracer(
    host: Host, client: Client
) -> None:
    job = await host.launch(client, "sleep", "1000")
    command = [sys.executable, "-c", TRACE, str(job.launched.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"traced\n"
        os.kill(job.launched.pid, signal.SIGKILL)
        await host.until(lambda: "held by one that traces it" in host.shim_log())
        before = host.shim_cpu()
        _, other = await host.run(client, "sleep", "0.3")
        assert other.exit_code == 0
        assert host.shim_cpu() - before < 0.2
        await client.stop(job.id)
        assert job.id not in host.records
        tracer.stdin.close()
    record = await host.ended(job)
    assert (record.signal, record.stopped) == (signal.SIGKILL, False)


async def test_cgroup_that_cannot_be_removed_is_named_in_the_record(
    host: Host, client: Client
) -> None:
    job = await host.launch(client, "sleep", "1000")
    nested = Path(job.cgroup.path) / "nested"
    nested.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", nested], check=True)
    try:
        await client.stop(job.id, grace=0)
        record = await host.ended(job)
    finally:
        subprocess.run(["umount", nested], check=True)
    assert "nested" in record.cgroup_error
    assert read_exit_record(job.directory) == record


async def test_end_that_cannot_be_written_is_told_kept_and_written_later(
    host: Host, client: Client
) -> None:
    job_id = str(uuid.uuid4())
    with full_directory(host.log_dir / job_id) as filler:
        job = await host.launch(client, "sleep", "1000", job_id=job_id)
        await client.stop(job.id, grace=0)
        record = await host.ended(job)
        assert record.stopped
        await client.close()
        host.records.clear()
        await host.connect()
        assert host.records == {job.id: record}

        filler.unlink()
        await host.until((job.directory / "exit.json").exists)
        assert read_exit_record(job.directory) == record
        assert host.shim_log().count("cannot write exit.json") == 1


async def test_what_is_in_the_place_of_the_record_is_put_aside(host: Host, client: Client) -> None:
    job = await host.launch(client, "sleep", "1000")
    for name in ("exit.json", ".exit.json.new"):
        (job.directory / name / "precious").mkdir(parents=True)
    await client.stop(job.id, grace=0)
    record = await host.ended(job)
    assert read_exit_record(job.directory) == record
    assert (job.directory / "exit.json.foreign-1" / "precious").is_dir()
    assert (job.directory / "exit.json.foreign-2" / "precious").is_dir()


FAST_RETRY = "from jobworker.shim import retry; retry.FIRST = 0.001"


async def hopeless(host: Host, client: Client) -> Job:
    """End a job whose record can never be written, and wait until the shim knows."""
    job = await host.launch(client, "sleep", "1000")
    obstacle = job.directory / "exit.json"
    obstacle.mkdir()
    # A directory that something is mounted on cannot be renamed: EBUSY.
    subprocess.run(["mount", "--bind", obstacle, obstacle], check=True)
    await client.stop(job.id, grace=0)
    await host.until(lambda: "giving up" in host.shim_log())
    subprocess.run(["umount", obstacle], check=True)
    return job


async def test_record_that_can_never_be_written_is_given_up(host: Host) -> None:
    host.start_shim(FAST_RETRY)
    client = await host.connect()
    job = await hopeless(host, client)
    assert (await host.ended(job)).stopped
    assert str(job.directory) not in host.shim_descriptors()
    assert host.shim_log().count("cannot write exit.json") == 2
    await client.close()
    await host.until(host.shim_is_gone)


async def test_end_that_is_nowhere_on_disk_is_kept_until_a_server_has_heard_it(host: Host) -> None:
    host.start_shim(FAST_RETRY)
    client = await host.connect()
    job = await host.launch(client, "sleep", "1000")
    (job.directory / "exit.json").mkdir()
    subprocess.run(["mount", "--bind", *[job.directory / "exit.json"] * 2], check=True)
    await client.close()
    signal.pidfd_send_signal(job.launched.pidfd, signal.SIGKILL)
    try:
        await host.until(lambda: "giving up" in host.shim_log())
    finally:
        subprocess.run(["umount", job.directory / "exit.json"], check=True)
    assert not host.shim_is_gone()
    client = await host.connect()
    assert host.records[job.id].signal == signal.SIGKILL
    await client.close()
    await host.until(host.shim_is_gone)


async def test_shim_gives_up_the_record_of_a_job_whose_directory_was_removed(
    host: Host, client: Client
) -> None:
    job = await host.launch(client, "sleep", "1000")
    shutil.rmtree(job.directory)
    await client.stop(job.id, grace=0)
    assert (await host.ended(job)).stopped
    await client.close()
    await host.until(host.shim_is_gone)
    assert "its directory was removed" in (host.run_dir / wire.LOG_NAME).read_text()


MALFORMED = """
from jobworker.cgroups import parse
from jobworker.cgroups.cgroup import Cgroup
def fail(self):
    raise parse.MalformedText(self.path, "nonsense")
Cgroup.usage = Cgroup.remove = fail
"""


async def test_name_that_is_no_text_can_be_told(host: Host, client: Client) -> None:
    job = await host.launch(client, "sleep", "1000")
    nested = Path(job.cgroup.path, os.fsdecode(b"caf\xe9"))
    nested.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", nested], check=True)
    try:
        await client.stop(job.id, grace=0)
        record = await host.ended(job)
    finally:
        subprocess.run(["umount", nested], check=True)
    assert "caf\\udce9" in record.cgroup_error
    assert read_exit_record(job.directory) == record


async def test_kernel_text_that_is_not_understood_costs_no_end(host: Host) -> None:
    host.start_shim(MALFORMED)
    job, record = await host.run(await host.connect(), "sh", "-c", "exit 3")
    assert (record.exit_code, record.usage) == (3, {})
    assert "cannot understand 'nonsense'" in record.cgroup_error
    assert read_exit_record(job.directory) == record


FIRST_RECORD_FAILS = """
from jobworker.shim import live, loop
loop._RETRY = 0.01
def record(self, boot_id, real=live.LiveJob.record, failed=set()):
    if self.id in failed:
        return real(self, boot_id)
    failed.add(self.id)
    raise RuntimeError
live.LiveJob.record = record
"""


@pytest.mark.parametrize("command", ["exit 3", "sleep 1000 & exit 3"])
async def test_end_whose_record_could_not_be_made_is_not_lost(host: Host, command: str) -> None:
    host.start_shim(FIRST_RECORD_FAILS)
    job, record = await host.run(await host.connect(), "sh", "-c", command)
    assert record.exit_code == 3
    assert read_exit_record(job.directory) == record


async def test_many_jobs_leave_no_descriptor_behind(host: Host, client: Client) -> None:
    await host.run(client, "true")
    before = host.shim_descriptors()
    for batch in range(10):
        jobs = [host.run(client, "sh", "-c", f"exit {batch}") for _ in range(20)]
        records = [record for _, record in await asyncio.gather(*jobs)]
        assert {record.exit_code for record in records} == {batch}
    assert host.shim_descriptors() == before
