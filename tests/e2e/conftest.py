"""What end-to-end tests share: prerequisites, a cgroup, certificates, the real programs."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.auth import certs as development_certs
from tests.support.cgroups import Unusable, hierarchy, own_cgroup
from tests.support.jobs import Gate
from tests.support.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def pytest_collection_finish(session: pytest.Session) -> None:
    """End the run with one message if there is nowhere to make cgroups."""
    here = Path(__file__).parent
    if session.config.option.collectonly or not any(here in i.path.parents for i in session.items):
        return
    try:
        with hierarchy():
            pass
    except Unusable as missing:
        raise pytest.UsageError(
            f"the e2e tests cannot run here. They need {missing}. The unit tests need nothing of "
            "the kind: make test-unit"
        ) from None


@pytest.fixture(scope="session", autouse=True)
def cgroup_mount() -> Iterator[Path]:
    """A cgroup2 mount that can be written."""
    with hierarchy() as mount:
        yield mount


@pytest.fixture
def cgroup_root(cgroup_mount: Path) -> Iterator[Path]:
    """A cgroup of the test's own; afterwards what is left in it is killed and it is removed."""
    with own_cgroup(cgroup_mount) as root:
        yield root


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA and the certificates of jobworker, user_alpha and user_bravo."""
    directory = tmp_path_factory.mktemp("certs")
    development_certs.init(directory)
    return directory


@pytest.fixture
def server(tmp_path: Path, certs: Path, cgroup_root: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the test's own: ``server()``, or ``server("--cleanup", …)``."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, environ: Mapping[str, str] | None = None) -> Server:
            directory = tmp_path / f"server-{uuid.uuid4()}"
            directory.mkdir()
            server = Server(directory, certs, cgroup_root, *options, environ=environ)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate for scripts: ``sh(f"echo one; {gate.wait}; echo two")``, then ``gate.open()``."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()
