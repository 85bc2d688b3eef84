"""`jobworker serve` as a process: its settings, its start, its end, and what keeps it from both."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.processes import JOBWORKER, environment, jobworker
from tests.support.server import READY_LINE, Server
from tests.support.shim import shim_is_gone
from tests.support.waiting import PATIENCE, until, wait_until

NO_JOB = "00000000-0000-4000-8000-000000000000"

# Settings


class Configured(Server):
    """A server whose only flags are those that it is given."""

    def command(self):
        return [*JOBWORKER, "serve", *self.options]


def test_a_flag_wins_over_the_environment_that_wins_over_the_file(certs, cgroup_root, tmp_path):
    config = tmp_path / "config.toml"
    names = ("log-dir", "state-dir", "run-dir")
    config.write_text("".join(f'{name} = "{tmp_path / "file" / name}"\n' for name in names))
    environ = {
        "JOBWORKER_CONFIG": str(config),
        "JOBWORKER_LISTEN": "localhost:0",
        "JOBWORKER_LOG_DIR": str(tmp_path / "environment" / "log-dir"),
        "JOBWORKER_STATE_DIR": str(tmp_path / "environment" / "state-dir"),
        "JOBWORKER_CGROUP_ROOT": str(cgroup_root),
        "JOBWORKER_SERVER_CERT": str(certs / "jobworker.crt"),
        "JOBWORKER_SERVER_KEY": str(certs / "jobworker.key"),
        "JOBWORKER_SERVER_CA": str(certs / "ca.crt"),
        # Those of a client; a server is none.
        **{f"JOBWORKER_{name}": "/nonexistent" for name in ("CERT", "KEY", "CA", "URL")},
    }
    options = ("--log-dir", str(tmp_path / "flag" / "log-dir"))
    server = Configured(tmp_path, certs, cgroup_root, *options, environ=environ)
    server.run_dir = tmp_path / "file" / "run-dir"
    try:
        made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*-dir"))
        assert made == ["environment/state-dir", "file/run-dir", "flag/log-dir"]
        assert (cgroup_root / "jobworker").exists()
        # What nothing sets has its default.
        assert (tmp_path / "environment" / "state-dir" / "audit.log").exists()
        assert server.cli("status", NO_JOB).returncode == 1
    finally:
        server.close()


def test_a_mistake_in_the_configuration_is_wrong_usage(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("listne = 'x'")
    done = jobworker("serve", "--config", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert "listne" in done.stderr
    assert "Traceback" not in done.stderr


# Start and end


def listener(path):
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.settimeout(PATIENCE)
    receiver.bind(path)
    return receiver


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_is_told_of_the_start_and_the_end(server, tmp_path, abstract):
    name = f"jobworker-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listener(f"\0{name}" if abstract else name) as receiver:
        running = server(environ={"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert receiver.recv(100) == b"READY=1"
        assert running.terminate() == 0
        assert receiver.recv(100) == b"STOPPING=1"


def said(running):
    return running.messages.read_text()


def test_ctrl_c_ends_the_server_and_leaves_jobs_running(server):
    running = server()
    job_id = running.cli("start", "sleep", "1000").stdout.decode().strip()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(PATIENCE) == 0
    assert "Traceback" not in said(running)
    running.restart()
    assert b"running" in running.cli("status", job_id).stdout
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0


async def test_more_signals_while_it_shuts_down_change_nothing(server):
    running = await asyncio.to_thread(server)
    async with running.client() as client:
        request = sh("trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done")
        job_id = (await client.start(request)).job_id
        output = running.log_dir / job_id / "output"
        await until(lambda: b"ready" in output.read_bytes())
        stop = asyncio.create_task(client.stop(job_id, grace=1000))
        await until(lambda: b"asked" in output.read_bytes())
        # The call that is under way holds the end up.
        running.process.send_signal(signal.SIGTERM)
        await until(lambda: "shutting down" in said(running))
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            running.process.send_signal(signum)
        assert await asyncio.to_thread(running.process.wait, PATIENCE) == 0
        with pytest.raises(grpc.aio.AioRpcError):
            await stop
        assert "Traceback" not in said(running)
        await asyncio.to_thread(running.restart)
        await client.stop(job_id, grace=0)
        assert (await client.status(job_id)).status.status == pb.STATUS_STOPPED


class Cleaning:
    """A server with ``--cleanup`` whose hierarchy begins at a test's cgroup, mounted by itself."""

    def __init__(self, certs, cgroup_root, directory):
        self.mount = directory / "cgroup2"
        self.run_dir = directory / "run"
        config = directory / "jobworker.toml"
        config.touch()
        arguments = [*JOBWORKER, "serve", "--cleanup", "--config", config]
        arguments += ["--listen", "localhost:0", "--cgroup-root", self.mount]
        for name, file in {"cert": "jobworker.crt", "key": "jobworker.key", "ca": "ca.crt"}.items():
            arguments += [f"--{name}", certs / file]
        for name in ("log", "state", "run"):
            arguments += [f"--{name}-dir", directory / name]
        # cgroup_namespaces(7): the namespace's root is the cgroup that the process is in.
        enter = 'echo $$ > "$0/cgroup.procs" && exec unshare --cgroup --mount "$@"'
        self.process = subprocess.Popen(
            ["sh", "-c", enter, cgroup_root, *arguments],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        line = self.process.stdout.readline()
        assert READY_LINE.match(line), line
        # Where its mounts can be seen, even after its end.
        self.namespace = os.open(f"/proc/{self.process.pid}/ns/mnt", os.O_RDONLY)

    def is_mounted(self):
        command = ["nsenter", f"--mount=/proc/self/fd/{self.namespace}", "cat", "/proc/mounts"]
        done = subprocess.run(command, pass_fds=[self.namespace], capture_output=True, check=True)
        return f" {self.mount} cgroup2 ".encode() in done.stdout

    def terminate(self):
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def close(self):
        self.process.kill()
        self.process.communicate()
        os.close(self.namespace)
        wait_until(lambda: shim_is_gone(self.run_dir), "the shim ended")


def test_cleanup_removes_the_cgroup_and_what_was_mounted(certs, cgroup_root, tmp_path):
    server = Cleaning(certs, cgroup_root, tmp_path)
    try:
        assert server.is_mounted()
        assert (cgroup_root / "jobworker").exists()
        assert server.terminate() == 0
        assert not (cgroup_root / "jobworker").exists()
        assert not server.is_mounted()
        assert not server.mount.exists()
    finally:
        server.close()


def test_cleanup_leaves_everything_to_jobs_that_run(server):
    running = server("--cleanup")
    job_id = running.cli("start", "sleep", "1000").stdout.decode().strip()
    assert running.terminate() == 0
    assert (running.jobs_cgroup / job_id / "cgroup.procs").read_text() != ""
    running.restart()
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0
    assert running.terminate() == 0
    assert not running.jobs_cgroup.exists()


# What keeps it from starting


def refused(arguments, **how):
    """Return the one line that a server says that does not start."""
    done = jobworker(*arguments, **how)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("jobworker: "), done.stderr
    return done.stderr.removeprefix("jobworker: ").rstrip()


def test_a_second_server_on_the_same_directories_is_refused(server):
    running = server()
    message = refused(running.command()[len(JOBWORKER) :])
    assert message.startswith(f"another jobworker server (pid {running.process.pid}) uses ")
    assert running.cli("status", NO_JOB).returncode == 1
    assert running.process.poll() is None


@pytest.fixture
def arguments(certs, cgroup_root, tmp_path):
    """The command line of a server with directories of its own."""
    config = tmp_path / "jobworker.toml"
    config.touch()
    arguments = ["serve", "--config", config, "--cgroup-root", cgroup_root]
    for name, file in {"cert": "jobworker.crt", "key": "jobworker.key", "ca": "ca.crt"}.items():
        arguments += [f"--{name}", certs / file]
    for name in ("log", "state", "run"):
        arguments += [f"--{name}-dir", tmp_path / name]
    yield arguments
    wait_until(lambda: shim_is_gone(tmp_path / "run"), "the shim ended")


def test_a_port_in_use_is_named(arguments):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refused([*arguments, "--listen", address])
    assert message == (
        f"cannot listen on {address}: 127.0.0.1 is in use; stop what uses it, or give another "
        "--listen"
    )


def test_a_port_in_use_on_one_address_of_the_host_is_named(arguments):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        message = refused([*arguments, "--listen", address])
    assert message.startswith(f"cannot listen on {address}: 127.0.0.1 is in use")


def test_jobs_that_are_found_running_are_counted_in_the_log(server):
    running = server()
    job_id = running.cli("start", "sleep", "1000").stdout.decode().strip()
    assert "found running" not in said(running)
    running.restart()
    assert "jobs of an earlier server found running: 1" in said(running)
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("[2001:db8::1]:0", "Cannot assign requested address"),
        ("localhost:65536", "the port is not a number from 0 to 65535"),
        ("localhost:http", "the port is not a number from 0 to 65535"),
        ("a host:1", ""),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_named(arguments, listen, why):
    message = refused([*arguments, "--listen", listen])
    assert message.startswith("cannot listen on ")
    assert listen in message
    assert why in message


@pytest.fixture
def nobody(certs, cgroup_root, arguments):
    """A place of the user nobody's, where a server of its could run; and how to start one."""
    uid = pwd.getpwnam("nobody").pw_uid
    place = Path(tempfile.mkdtemp(prefix="jobworker-test-"))
    shutil.copytree(certs, place / "certs")
    for path in (place, cgroup_root, *place.rglob("*")):
        os.chown(path, uid, -1)
    own = [*arguments, "--listen", "localhost:0"]
    for name, file in {"cert": "jobworker.crt", "key": "jobworker.key", "ca": "ca.crt"}.items():
        own += [f"--{name}", place / "certs" / file]
    for name in ("log", "state", "run"):
        own += [f"--{name}-dir", place / name]
    config = place / "jobworker.toml"
    config.touch()
    own += ["--config", config]
    yield own
    wait_until(lambda: shim_is_gone(place / "run"), "the shim ended")
    shutil.rmtree(place)


@pytest.mark.parametrize("name", ["log", "state", "run"])
def test_a_directory_that_cannot_be_made_is_one_line(nobody, name):
    message = refused([*nobody, f"--{name}-dir", "/root/of/evil"], as_nobody=True)
    assert message.startswith("cannot ")
    assert "/root/of/evil" in message
    assert "permission denied" in message.lower()


def test_an_audit_log_that_cannot_be_made_is_one_line(nobody):
    message = refused([*nobody, "--audit-log", "/root/audit.log"], as_nobody=True)
    assert message.startswith("cannot ")
    assert "/root/audit.log" in message


def test_a_cgroup_root_of_somebody_else_is_one_line(nobody, cgroup_root):
    os.chown(cgroup_root, 0, -1)
    message = refused(nobody, as_nobody=True)
    assert message.startswith(f"cannot create the cgroup {cgroup_root}/jobworker: ")
