"""What end-to-end tests share: prerequisites, a cgroup, certificates, servers."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.auth import certs as development_certs
from tests.support.cgroups import own_cgroup
from tests.support.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    """A cgroup of the test's own."""
    with own_cgroup(cgroup_mount) as root:
        yield root


# The programs


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA and the certificates of jobworker, user_alpha and user_bravo."""
    directory = tmp_path_factory.mktemp("certs")
    development_certs.init(directory)
    return directory


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
