"""A real server to measure: its directories, certificates and cgroup, its start and its end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.auth import certs as development_certs
from jobworker.rpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE: Final = 20.0
"""Seconds that a start, an end or a cleanup may take."""

_READY: Final = re.compile(r"ready on (\S+)")


class Server:
    """A server in its own `directory`, with jobs below its own `cgroup_root`.

    It is ready at `address` after `start`, and stays at that address when it is started again.
    """

    def __init__(self, directory: Path, cgroup_root: Path, options: tuple[str, ...] = ()) -> None:
        self.directory: Final = directory
        self.cgroup_root: Final = cgroup_root
        self.address = "localhost:0"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that serves now, or served last."""
        assert self._process is not None
        return self._process.pid

    @property
    def certs(self) -> Path:
        """Where the certificates are, named as ``jobworker certs init`` names them."""
        return self.directory / "certs"

    def client(self) -> Client:
        """Return a client that may do everything."""
        return Client(
            self.address,
            cert=self.certs / "user_alpha.crt",
            key=self.certs / "user_alpha.key",
            ca=self.certs / "ca.crt",
        )

    def start(self) -> None:
        """Start the process, and return when it is ready."""
        log = self.directory / "server.log"
        command = _command(self.directory, self.cgroup_root, self.address)
        with log.open("ab") as messages:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stdout=subprocess.PIPE,
                stderr=messages,
                # The settings of whoever runs this are not the server's.
                env={key: value for key, value in os.environ.items() if "JOBWORKER" not in key},
            )
        self.address = _address(self._process, log)

    def kill(self) -> None:
        """End the process as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """End the process in an orderly way, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextlib.contextmanager
def running(*options: str) -> Iterator[Server]:
    """Run a server; afterwards nothing of it is left: no process, no cgroup, no file.

    `options` are more arguments for ``serve``.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="jobworker-bench-"))
        )
        development_certs.init(directory / "certs")
        (directory / "jobworker.toml").touch()
        server = Server(directory, stack.enter_context(_cgroup()), options)
        stack.callback(server.stop)
        server.start()
        yield server


def _command(directory: Path, cgroup_root: Path, address: str) -> list[str]:
    certs = directory / "certs"
    options = {
        "--config": directory / "jobworker.toml",
        "--listen": address,
        "--cert": certs / "jobworker.crt",
        "--key": certs / "jobworker.key",
        "--ca": certs / "ca.crt",
        "--log-dir": directory / "log",
        "--state-dir": directory / "state",
        "--run-dir": directory / "run",
        "--cgroup-root": cgroup_root,
    }
    arguments = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "jobworker.daemon.main", "serve", *arguments]


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the line that says that the server is ready, and return the address in it."""
    assert process.stdout is not None
    deadline = time.monotonic() + PATIENCE
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        piece = os.read(process.stdout.fileno(), 4096)
        said += piece
        if b"\n" in piece and (ready := _READY.search(said.decode())):
            return ready[1]
        if not piece:
            break
    sys.exit(f"the server did not become ready; it said:\n{said.decode()}{log.read_text()}")


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup of our own in a cgroup2 mount of our own, or in one that is there."""
    with contextlib.ExitStack() as stack:
        # Not in a directory that is removed with all that is in it: if it could not be unmounted,
        # that would be the cgroups.
        mount = Path(tempfile.mkdtemp(prefix="jobworker-bench-cgroup2-"))
        stack.callback(mount.rmdir)
        command = [shutil.which("mount") or "mount", "-t", "cgroup2", "none", str(mount)]
        attempt = subprocess.run(command, capture_output=True, text=True, check=False)
        if attempt.returncode == 0:
            stack.callback(subprocess.run, ["umount", str(mount)], check=True)
        else:
            mount = _existing_mount(attempt.stderr)
        root = mount / f"jobworker-bench-{uuid.uuid4()}"
        root.mkdir()
        stack.callback(_remove_cgroup, root)
        yield root


def _existing_mount(why_not_ours: str) -> Path:
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _source, target, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(target, os.W_OK):
            return Path(target)
    sys.exit(f"the benchmarks need root and a cgroup2 mount: {why_not_ours.strip()}")


def _remove_cgroup(root: Path) -> None:
    """Kill what is left in `root` and remove it; the kernel says EBUSY until all is dead."""
    (root / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            for path, _, _ in os.walk(root, topdown=False):
                Path(path).rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
