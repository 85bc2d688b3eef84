"""What end-to-end tests share: prerequisites, a cgroup, certificates, the real programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.auth import certs as development_certs
from jobworker.rpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0
"""Seconds that anything may take that takes far less than one on an idle machine."""

READY_LINE = re.compile(rb"^jobworker is ready on (\S+)$", re.MULTILINE)


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until `condition` holds; after `patience` seconds fail, saying `what` did not happen."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience:g} s in vain: {what}")
        time.sleep(0.01)


# Prerequisites and cgroups


@pytest.fixture(scope="session", autouse=True)
def cgroup_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cgroup2 mount that can be written; end the run with one message if there is none."""
    if os.geteuid() != 0:
        _give_up("root, which alone may create cgroups. Try: sudo make test-e2e")
    with contextlib.ExitStack() as stack:
        mount = next(filter(_is_usable, _cgroup2_mounts()), None)
        if mount is None:
            mount = tmp_path_factory.mktemp("cgroup2")
            command = ["mount", "-t", "cgroup2", "none", str(mount)]
            attempt = subprocess.run(command, capture_output=True, text=True, check=False)
            if attempt.returncode != 0:
                why = attempt.stderr.partition("\n")[0]
                _give_up(
                    f"a cgroup v2 hierarchy that can be written, and mounting one failed ({why}). "
                    "In a container, run it with --privileged"
                )
            stack.callback(subprocess.run, ["umount", str(mount)], check=True)
            if not _is_usable(mount):
                _give_up(f"Linux 5.14 or later (this is {platform.release()})")
        yield mount


def _give_up(missing: str) -> None:
    pytest.exit(
        f"the e2e tests cannot run here. They need {missing}. The unit tests need nothing of the "
        "kind: make test-unit",
        returncode=1,
    )


def _cgroup2_mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _source, target, kind, *_ = line.split()
        if kind == "cgroup2":  # Spaces in the path are octal escapes (proc(5)).
            yield Path(target.encode().decode("unicode_escape"))


def _is_usable(mount: Path) -> bool:
    probe = mount / f"jobworker-test-{uuid.uuid4()}"
    try:
        probe.mkdir()
    except OSError:
        return False
    try:
        return (probe / "cgroup.kill").exists()  # Linux 5.14
    finally:
        probe.rmdir()


@pytest.fixture
def cgroup_root(cgroup_mount: Path) -> Iterator[Path]:
    """A cgroup of the test's own; afterwards what is left in it is killed and it is removed."""
    root = cgroup_mount / f"jobworker-test-{uuid.uuid4()}"
    root.mkdir()
    yield root
    empty_cgroup(root)
    for directory, _, _ in os.walk(root, topdown=False):
        Path(directory).rmdir()


def populated(cgroup: Path) -> bool:
    """Whether `cgroup` is there, and a process in it or below (cgroup.events, cgroups(7))."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text(encoding="ascii")
    except OSError:  # ENOENT, or ENODEV if it was removed after it was opened.
        return False


def empty_cgroup(cgroup: Path) -> None:
    """Kill every process in `cgroup` and below, and wait until they are gone."""
    (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
    wait_until(lambda: not populated(cgroup), f"{cgroup} became empty")


# The programs


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA and the certificates of jobworker, user_alpha and user_bravo."""
    directory = tmp_path_factory.mktemp("certs")
    development_certs.init(directory)
    return directory


class Server:
    """A real ``jobworker serve``, and the real clients that talk to it.

    All calls block; where an event loop has to go on meanwhile, use ``asyncio.to_thread``.
    `options` are more arguments for ``serve``.
    """

    def __init__(self, directory: Path, certs: Path, cgroup_root: Path, *options: str) -> None:
        self.certs = certs
        self.cgroup_root = cgroup_root
        self.log_dir = directory / "log"
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"
        self.messages = directory / "server.log"
        self.address = "localhost:0"
        self._options = options
        self._config = directory / "jobworker.toml"  # The host's own must not be read.
        self._config.touch()
        self.process = self._start()

    def command(self) -> list[str]:
        """Return the command line of this server."""
        command = [sys.executable, "-m", "jobworker.daemon.main", "serve"]
        command += ["--config", str(self._config), "--listen", self.address]
        command += ["--cert", str(self.certs / "jobworker.crt")]
        command += ["--key", str(self.certs / "jobworker.key"), "--ca", str(self.certs / "ca.crt")]
        command += ["--log-dir", str(self.log_dir), "--state-dir", str(self.state_dir)]
        command += ["--run-dir", str(self.run_dir), "--cgroup-root", str(self.cgroup_root)]
        return [*command, *self._options]

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the program and wait until it is ready."""
        with self.messages.open("ab") as messages:
            size = messages.tell()
            process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env=_environment(),
            )

        def said() -> bytes:
            return self.messages.read_bytes()[size:]

        try:
            wait_until(
                lambda: bool(READY_LINE.search(said())) or process.poll() is not None,
                f"the server said that it is ready ({self.messages})",
            )
            ready = READY_LINE.search(said())
            if ready is None:
                pytest.fail(f"the server ended with {process.returncode}: {said().decode()}")
        except pytest.fail.Exception:
            process.kill()
            process.wait()
            raise
        self.address = ready[1].decode()
        return process

    @property
    def jobs_cgroup(self) -> Path:
        """The directory that holds the cgroups of the jobs, by job id."""
        return self.cgroup_root / "jobworker"

    def wait_for_end(self, job_id: str) -> None:
        """Wait until the shim is through with a job; needs no server."""
        cgroup = self.jobs_cgroup / job_id
        wait_until(lambda: not cgroup.exists(), f"the cgroup of job {job_id} was removed")

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """Ask the server to end (SIGTERM); return its exit status once it has."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def restart(self) -> None:
        """Start the server again at the same address, after a SIGTERM if it still runs."""
        if self.process.poll() is None:
            self.terminate()
        self.process = self._start()

    def client(self, user: str = "user_alpha") -> Client:
        """Return a client of `user`, to be used as ``async with server.client() as client``."""
        return Client(
            self.address,
            cert=self.certs / f"{user}.crt",
            key=self.certs / f"{user}.key",
            ca=self.certs / "ca.crt",
        )

    def cli_command(self, *arguments: str, user: str = "user_alpha") -> list[str]:
        """Return the command line of ``jobworker-cli`` for `user`."""
        command = [sys.executable, "-m", "jobworker.cli", "--url", self.address]
        command += ["--cert", str(self.certs / f"{user}.crt")]
        command += ["--key", str(self.certs / f"{user}.key"), "--ca", str(self.certs / "ca.crt")]
        return [*command, *arguments]

    def cli(
        self, *arguments: str, user: str = "user_alpha", stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``jobworker-cli`` to its end."""
        return subprocess.run(
            self.cli_command(*arguments, user=user),
            input=stdin,
            capture_output=True,
            env=_environment(),
            timeout=PATIENCE,
            check=False,
        )

    def close(self) -> None:
        """End the server, the jobs and with them the shim; fail if a job was left running."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                pytest.fail(f"the server did not end on SIGTERM: {self.messages.read_text()}")
        jobs = self._running_jobs()
        for job in jobs:
            empty_cgroup(job)
        wait_until(self._shim_is_gone, "the shim ended after the server and the last job had")
        assert not jobs, f"the test left jobs running: {[job.name for job in jobs]}"

    def _running_jobs(self) -> list[Path]:
        if not self.jobs_cgroup.exists():
            return []
        return [path for path in self.jobs_cgroup.iterdir() if path.is_dir() and populated(path)]

    def _shim_is_gone(self) -> bool:
        try:
            fd = os.open(self.run_dir / "shim.lock", os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


def _environment() -> dict[str, str]:
    """Return the environment without settings of the person who runs the tests."""
    foreign = ("JOBWORKER_", "GRPC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "XDG_CONFIG_HOME": "/nonexistent", "NO_COLOR": "1"}


@pytest.fixture
def server(tmp_path: Path, certs: Path, cgroup_root: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the test's own: ``server()``, or ``server("--metrics", …)``."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Server:
            directory = tmp_path / f"server-{uuid.uuid4()}"
            directory.mkdir()
            server = Server(directory, certs, cgroup_root, *options)
            stack.callback(server.close)
            return server

        yield start
