"""The real programs as processes: a server of a test's own, and the clients that talk to it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from jobworker.rpc.client import Client
from tests.support.cgroups import empty_cgroup, populated
from tests.support.processes import JOBWORKER, environment
from tests.support.shim import all_is_gone
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_ENDING = 10.0
"""Seconds in which a job that ends by itself has ended."""

READY_LINE = re.compile(rb"^jobworker is ready on (\S+)$", re.MULTILINE)


class Server:
    """A real ``jobworker serve``, and the real clients that talk to it.

    All calls block; where an event loop has to go on meanwhile, use ``asyncio.to_thread``.
    `options` are more arguments for ``serve``, `environ` more variables, `program` is what runs.
    """

    def __init__(
        self,
        directory: Path,
        certs: Path,
        cgroup_root: Path,
        *options: str,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = JOBWORKER,
    ) -> None:
        self.certs = certs
        self.cgroup_root = cgroup_root
        self.log_dir = directory / "log"
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"
        self.messages = directory / "server.log"
        self.address = "localhost:0"
        self.options = options
        self.program = program
        self._environ = environ or {}
        self.config = directory / "jobworker.toml"  # The host's own must not be read.
        self.config.touch()
        self.process = self._start()

    def command(self) -> list[str]:
        """Return the command line of this server."""
        command = [*self.program, "serve", "--config", str(self.config), "--listen", self.address]
        command += ["--cert", str(self.certs / "jobworker.crt")]
        command += ["--key", str(self.certs / "jobworker.key"), "--ca", str(self.certs / "ca.crt")]
        command += ["--log-dir", str(self.log_dir), "--state-dir", str(self.state_dir)]
        command += ["--run-dir", str(self.run_dir), "--cgroup-root", str(self.cgroup_root)]
        return [*command, *self.options]

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the program and wait until it is ready."""
        with self.messages.open("ab") as messages:
            size = messages.tell()
            process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env=environment(**self._environ),
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
            env=environment(),
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
        jobs = self._left_running()
        for job in jobs:
            empty_cgroup(job)
        wait_until(
            lambda: all_is_gone(self.run_dir), "the shim ended after the server and the last job"
        )
        assert not jobs, f"the test left jobs running: {[job.name for job in jobs]}"

    def _left_running(self) -> list[Path]:
        """Return the jobs that run and do not just end."""
        deadline = time.monotonic() + _ENDING
        while (jobs := self._running_jobs()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return jobs

    def _running_jobs(self) -> list[Path]:
        if not self.jobs_cgroup.exists():
            return []
        return [path for path in self.jobs_cgroup.iterdir() if path.is_dir() and populated(path)]
