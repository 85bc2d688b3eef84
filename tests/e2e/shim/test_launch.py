"""What a command finds when it begins, and what a launch says that cannot succeed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups.cgroup import Cgroup
from jobworker.errors import (
    CgroupUnavailable,
    CommandNotExecutable,
    CommandNotFound,
    InvalidArgument,
    JobNotFound,
    JobWorkerError,
    LaunchFailed,
    WorkingDirectoryUnusable,
)
from jobworker.shim import Launch, wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Host, Job

    from jobworker.shim import Client

NOBODY = 65534


async def sleeper(host: Host, client: Client, **options: object) -> Job:
    return await host.launch(client, "sleep", "1000", **options)


async def test_command_is_in_its_cgroup(host: Host, any_client: Client) -> None:
    job, _ = await host.run(any_client, "cat", "/proc/self/cgroup")
    assert b"0::" in job.output
    (line,) = [line for line in job.output.decode().splitlines() if line.startswith("0::")]
    assert line.endswith(f"/{host.cgroup_root.name}/{job.id}")


async def test_pid_start_time_and_pidfd_are_those_of_the_main_process(
    host: Host, any_client: Client
) -> None:
    for _ in range(20):
        job = await sleeper(host, any_client)
        pid, pidfd = job.launched.pid, job.launched.pidfd
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[19]) == job.launched.start_time
        assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()


async def test_command_has_only_its_three_descriptors(host: Host) -> None:
    read_end, write_end = os.pipe()
    host.start_shim(pass_fds=(read_end, write_end))
    os.close(read_end)
    os.close(write_end)
    assert sum(target.startswith("pipe:") for target in host.shim_descriptors()) > 2
    job = await sleeper(host, await host.connect())
    directory = Path(f"/proc/{job.launched.pid}/fd")
    # For a moment the dynamic linker has the libraries open that it maps.
    await host.until(lambda: {each.name for each in directory.iterdir()} == {"0", "1", "2"})
    assert (directory / "1").readlink() == (directory / "2").readlink() == job.directory / "output"


async def test_signals_are_at_their_defaults(host: Host, any_client: Client) -> None:
    job = await sleeper(host, any_client)
    status = job.status()
    masks = {name: int(status[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd")}
    assert masks == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0, "SigPnd": 0}


IGNORE_INTERNAL_SIGNALS = """
import ctypes, os
number = 13 if os.uname().machine == "x86_64" else 134
ignore = (1).to_bytes(8, "little") + bytes(24)
for signum in (32, 33):
    assert ctypes.CDLL(None).syscall(number, signum, ignore, None, 8) == 0
"""


async def test_signals_that_glibc_keeps_for_itself_are_at_their_defaults_too(host: Host) -> None:
    host.start_shim(IGNORE_INTERNAL_SIGNALS)
    job = await sleeper(host, await host.connect())
    assert int(job.status()["SigIgn"], 16) == 0


async def test_machine_whose_system_calls_are_not_known_starts_jobs_by_fork(host: Host) -> None:
    read_end, write_end = os.pipe()
    foreign = "import jobworker.shim.spawn as s; s._calls = s.system_calls('alpha')"
    host.start_shim(foreign, pass_fds=(read_end, write_end))
    os.close(read_end)
    os.close(write_end)
    client = await host.connect()
    job = await sleeper(host, client)
    directory = Path(f"/proc/{job.launched.pid}/fd")
    await host.until(lambda: {each.name for each in directory.iterdir()} == {"0", "1", "2"})
    assert job.launched.pid in job.cgroup.processes()
    assert "using fork" in (host.run_dir / wire.LOG_NAME).read_text()
    await client.stop(job.id, grace=0)
    assert (await host.ended(job)).signal == signal.SIGKILL


async def test_command_leads_its_own_session(host: Host, any_client: Client) -> None:
    job = await sleeper(host, any_client)
    assert os.getsid(job.launched.pid) == os.getpgid(job.launched.pid) == job.launched.pid


async def test_umask_and_descriptor_limit_are_the_usual_ones(
    host: Host, any_client: Client
) -> None:
    job = await sleeper(host, any_client)
    assert job.status()["Umask"] == "0022"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert resource.prlimit(job.launched.pid, resource.RLIMIT_NOFILE) == (min(1024, hard), hard)


async def test_soft_descriptor_limit_is_raised_for_the_shim_and_not_for_jobs(host: Host) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    host.start_shim(f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (512, {hard}))")
    job = await sleeper(host, await host.connect())
    assert resource.prlimit(host.shim_pid(), resource.RLIMIT_NOFILE) == (hard, hard)
    assert resource.prlimit(job.launched.pid, resource.RLIMIT_NOFILE) == (min(1024, hard), hard)


async def test_environment_is_exactly_what_was_given(host: Host, any_client: Client) -> None:
    env = {"PATH": "/nowhere", "EMPTY": "", "LINES": "a\nb=c", "Ümläut": "\udcff"}
    job = await sleeper(host, any_client, env=env)
    raw = Path(f"/proc/{job.launched.pid}/environ").read_bytes()
    pairs = [b"PATH=/nowhere", b"EMPTY=", b"LINES=a\nb=c", "Ümläut=".encode() + b"\xff"]
    assert sorted(raw.rstrip(b"\0").split(b"\0")) == sorted(pairs)


async def test_arguments_are_passed_as_they_are(host: Host, any_client: Client) -> None:
    arguments = ["", " ", "$HOME; *", "a\nb", "-x", "é", "\udcfe"]
    job, _ = await host.run(any_client, "printf", r"%s\0", *arguments)
    assert job.output == b"".join(os.fsencode(each) + b"\0" for each in arguments)


async def test_standard_input_is_read_and_both_outputs_are_appended(
    host: Host, any_client: Client
) -> None:
    job, record = await host.run(
        any_client, "sh", "-c", "cat; echo error >&2; echo more", stdin=b"input\n"
    )
    assert job.output == b"input\nerror\nmore\n"
    assert record.output_size == len(job.output)


async def test_command_runs_in_its_working_directory(host: Host, any_client: Client) -> None:
    job, _ = await host.run(any_client, "pwd", working_directory="/usr")
    assert job.output == b"/usr\n"


async def test_command_runs_as_its_user_without_the_shims_groups(host: Host) -> None:
    host.start_shim("import os; os.setgroups([7])")
    job = await sleeper(host, await host.connect(), uid=NOBODY, gid=NOBODY)
    status = job.status()
    assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4
    assert status["Groups"] == ""
    assert int(status["CapEff"], 16) == 0


async def test_command_gets_the_groups_it_was_given(host: Host, any_client: Client) -> None:
    job = await sleeper(host, any_client, uid=NOBODY, gid=NOBODY, groups=[1, 4])
    assert job.status()["Groups"].split() == ["1", "4"]


async def test_candidates_are_tried_in_order(host: Host, any_client: Client) -> None:
    candidates = ["/nowhere/true", "/etc/passwd/true", "/bin/true"]
    _, record = await host.run(any_client, "true", executables=candidates)
    assert record.exit_code == 0


@pytest.fixture
def script(host: Host) -> Path:
    path = host.log_dir / "script"
    path.write_text("#!/nowhere/interpreter\n")
    path.chmod(0o755)
    return path


async def assert_nothing_is_left(host: Host, client: Client) -> None:
    for cgroup in host.cgroup_root.iterdir():
        if cgroup.is_dir():
            assert "populated 0" in (cgroup / "cgroup.events").read_text()
    children = Path(f"/proc/{host.shim_pid()}/task/{host.shim_pid()}/children").read_text()
    assert children == ""
    _, record = await host.run(client, "true")
    assert record.exit_code == 0


async def test_command_that_does_not_exist_is_not_found(host: Host, any_client: Client) -> None:
    with pytest.raises(CommandNotFound, match="cannot find the command no-such in the job's PATH"):
        await host.launch(any_client, "no-such")
    with pytest.raises(CommandNotFound, match="/no/such: there is no such file"):
        await host.launch(any_client, "/no/such")
    await assert_nothing_is_left(host, any_client)


async def test_missing_interpreter_is_named_as_such(
    host: Host, any_client: Client, script: Path
) -> None:
    with pytest.raises(CommandNotFound, match="not the interpreter"):
        await host.launch(any_client, str(script))
    await assert_nothing_is_left(host, any_client)


async def test_file_without_permission_is_not_executable(
    host: Host, any_client: Client, script: Path
) -> None:
    script.chmod(0o644)
    candidates = [str(script), "/nowhere/script"]
    with pytest.raises(CommandNotExecutable, match="look at its mode"):
        await host.launch(any_client, "script", executables=candidates)
    await assert_nothing_is_left(host, any_client)


async def test_directory_is_not_executable(host: Host, any_client: Client) -> None:
    with pytest.raises(CommandNotExecutable, match="cannot execute /usr"):
        await host.launch(any_client, "/usr")


async def test_text_without_an_interpreter_is_never_given_to_a_shell(
    host: Host, any_client: Client, script: Path
) -> None:
    script.write_text("touch /nowhere\n")
    with pytest.raises(CommandNotExecutable, match="neither a program"):
        await host.launch(any_client, str(script))


async def test_too_long_an_argument_list_is_an_invalid_argument(
    host: Host, any_client: Client
) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        await host.launch(any_client, "true", *["x" * 100_000] * 100)
    await assert_nothing_is_left(host, any_client)


async def test_missing_working_directory_is_named(host: Host, any_client: Client) -> None:
    with pytest.raises(WorkingDirectoryUnusable, match=r"cannot enter .* /nowhere: No such file"):
        await host.launch(any_client, "true", working_directory="/nowhere")
    await assert_nothing_is_left(host, any_client)


async def test_working_directory_is_entered_as_the_jobs_user(
    host: Host, any_client: Client
) -> None:
    (host.log_dir / "private").mkdir(mode=0o700)
    with pytest.raises(WorkingDirectoryUnusable, match="Permission denied"):
        await host.launch(
            any_client,
            "true",
            uid=NOBODY,
            gid=NOBODY,
            working_directory=str(host.log_dir / "private"),
        )


async def test_cgroup_that_was_removed_refuses_the_process(host: Host, any_client: Client) -> None:
    cgroup = Cgroup(host.cgroup_root / "removed")
    Path(cgroup.path).mkdir()
    with host.open_all(host.log_dir, cgroup, b"") as fds:
        cgroup.remove()
        launch = Launch(
            job_id="removed",
            executables=["/bin/true"],
            argv=["true"],
            env={},
            working_directory="/",
            cgroup_path=cgroup.path,
        )
        with pytest.raises(CgroupUnavailable, match="cannot start a process in"):
            await any_client.launch(launch, **fds)
    await assert_nothing_is_left(host, any_client)


async def test_path_of_another_cgroup_is_refused(host: Host, client: Client) -> None:
    victim = await sleeper(host, client)
    cgroup = Cgroup(host.cgroup_root / "own")
    Path(cgroup.path).mkdir()
    launch = Launch(
        job_id="own",
        executables=["/bin/true"],
        argv=["true"],
        env={},
        working_directory="/",
        cgroup_path=victim.cgroup.path,
    )
    with (
        host.open_all(host.log_dir, cgroup, b"") as fds,
        pytest.raises(JobWorkerError, match="cgroup_path"),
    ):
        await client.launch(launch, **fds)
    assert victim.cgroup.populated()


async def test_live_job_cannot_be_launched_again(host: Host, client: Client) -> None:
    job = await sleeper(host, client)
    with pytest.raises(JobWorkerError, match="there is a job of that id"):
        await host.launch(client, "true", job_id=job.id)
    assert job.cgroup.populated()


@pytest.fixture
def hanging_program(host: Host) -> Iterator[tuple[Path, int]]:
    """A program whose execve hangs until the lease on it (fcntl(2)) is given back."""
    directory = host.log_dir / "tmpfs"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    program = Path(shutil.copy("/bin/true", directory / "true"))
    fd = os.open(program, os.O_RDONLY)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield program, fd
    os.close(fd)
    signal.signal(signal.SIGIO, before)
    subprocess.run(["umount", directory], check=True)


async def test_execve_that_hangs_delays_no_other_job(
    host: Host, client: Client, hanging_program: tuple[Path, int]
) -> None:
    program, lease = hanging_program
    launching = asyncio.create_task(host.launch(client, str(program)))
    _, record = await host.run(client, "true")
    assert record.exit_code == 0
    assert not launching.done()
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert (await host.ended(await launching)).exit_code == 0


async def test_job_whose_execve_hangs_can_be_killed(
    host: Host, client: Client, hanging_program: tuple[Path, int]
) -> None:
    program, _ = hanging_program
    launching = asyncio.create_task(host.launch(client, str(program), job_id="hanging"))
    await host.run(client, "true")
    other = await host.connect()
    attaching = asyncio.create_task(other.attach("hanging"))
    await host.until(lambda: bool(other._calls))
    # Answered in turn: the shim has heard of the attach, which would find no job after the stop.
    await other._call("hello", {"version": wire.VERSION})
    await client.stop("hanging", grace=0)
    job = await launching
    os.close((await attaching).pidfd)
    record = await host.ended(job)
    assert (record.signal, record.stopped) == (signal.SIGKILL, True)


WAIT_AND_FAIL = """
import os
from jobworker.shim import spawn
def execute(steps):
    with open(steps.working_directory + b"/gate"):
        raise FileNotFoundError(2, "gone")
spawn._execute = execute
"""


async def test_who_attaches_to_a_launch_that_fails_is_told_so(host: Host) -> None:
    host.start_shim(WAIT_AND_FAIL)
    client, other = await host.connect(), await host.connect()
    os.mkfifo(host.log_dir / "gate")
    directory = str(host.log_dir)
    launch = host.launch(client, "true", job_id="slow", working_directory=directory)
    launching = asyncio.create_task(launch)
    await host.until(Cgroup(host.cgroup_root / "slow").populated)
    attaching = asyncio.create_task(other.attach("slow"))
    await host.until(lambda: bool(other._calls))
    await other._call("hello", {"version": wire.VERSION})
    (host.log_dir / "gate").write_text("")
    with pytest.raises(LaunchFailed, match=r"slow was not started: .*No such file"):
        await attaching
    with pytest.raises(CommandNotFound):
        await launching
    with pytest.raises(JobNotFound):
        await other.attach("slow")
