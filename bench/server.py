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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.auth import certs as development_certs
from jobworker.rpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE: Final = 20.0
"""Seconds that a start, an end or a cleanup may take."""

_READY: Final = re.compile(r"ready on (\S+)")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready, at `address`, in its own `directory`."""

    address: str
    directory: Path
    pid: int

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


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server; afterwards nothing of it is left: no process, no cgroup, no file."""
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="jobworker-bench-"))
        )
        development_certs.init(directory / "certs")
        (directory / "jobworker.toml").touch()
        root = stack.enter_context(_cgroup(directory))
        log = stack.enter_context((directory / "server.log").open("w+b"))
        process = subprocess.Popen(
            _command(directory, root),
            stdout=subprocess.PIPE,
            stderr=log,
            # The settings of whoever runs this are not the server's.
            env={key: value for key, value in os.environ.items() if "JOBWORKER" not in key},
        )
        stack.callback(_stop, process)
        yield Server(_address(process, directory / "server.log"), directory, process.pid)


def _command(directory: Path, cgroup_root: Path) -> list[str]:
    certs = directory / "certs"
    options = {
        "--config": directory / "jobworker.toml",
        "--listen": "localhost:0",
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


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


@contextlib.contextmanager
def _cgroup(directory: Path) -> Iterator[Path]:
    """Make a cgroup of our own in a cgroup2 mount of our own, or in one that is there."""
    with contextlib.ExitStack() as stack:
        mount = directory / "cgroup2"
        mount.mkdir()
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
