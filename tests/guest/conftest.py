"""What the tests in the guest share: one server, jobs that do not outlive a test, the figures.

A program takes a second or two to start there, so the server is shared, and tests talk to it from
their own process.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobworker.auth import certs as development_certs
from jobworker.cgroups.controllers import CONTROLLERS
from jobworker.cgroups.limits import TABLE
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.figures import Figure, complete, to_json, to_markdown
from tests.support.cgroups import own_cgroup
from tests.support.processes import JOBWORKER
from tests.support.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from jobworker.rpc.client import Client
    from tests.guest.figures import Verdict

HIERARCHY = Path("/sys/fs/cgroup")
FIGURES = pytest.StashKey[list[Figure]]()
UPTIME_AT_FIRST_TEST = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker by which `mutants` finds the tests of a limit."""
    config.addinivalue_line(
        "markers",
        "proves(limit, file): fails if the limit (in that file, if it has several) is not applied",
    )


# The guest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the run with one message if this is no guest; note when the first test begins."""
    if "GUEST_OUTPUT" not in os.environ:
        pytest.exit("these tests run in a guest: make guest-test", returncode=1)
    item.config.stash.setdefault(UPTIME_AT_FIRST_TEST, _uptime())


@pytest.fixture(scope="session")
def hierarchy() -> Path:
    """Where cgroup v2 is mounted; the guest has nothing of cgroup v1."""
    return HIERARCHY


@pytest.fixture
def cgroup_root(hierarchy: Path) -> Iterator[Path]:
    """A cgroup of the test's own, with every controller that limits need."""
    enabled = " ".join(f"+{name}" for name in CONTROLLERS)
    (hierarchy / "cgroup.subtree_control").write_text(enabled, encoding="ascii")
    with own_cgroup(hierarchy) as root:
        yield root


# The programs


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, hierarchy: Path) -> Iterator[Server]:
    """The server of all tests; its jobs are below ``/sys/fs/cgroup/jobworker``."""
    directory = tmp_path_factory.mktemp("server")
    certs = directory / "certs"
    development_certs.init(certs)
    server = Server(directory, certs, hierarchy, program=_program())
    yield server
    server.close()


def _program() -> tuple[str, ...]:
    """Return the server's program; while `mutants` runs, one that is careless with a limit."""
    if mutant := os.environ.get("GUEST_MUTANT"):
        return (sys.executable, "-m", "tests.guest.careless", *mutant.split())
    return JOBWORKER


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of user_alpha."""
    async with server.client() as client:
        yield client


class Jobs:
    """Starts jobs and waits for them; what still runs when the test is over is killed."""

    def __init__(self, client: Client, directory: Path) -> None:
        self._client = client
        self._directory = directory
        self._started: list[str] = []

    async def start(self, *command: str, limits: pb.Limits | None = None, **fields: Any) -> str:
        """Start a job and return its id; `fields` are those of a StartRequest."""
        name, *args = command
        request = pb.StartRequest(command=pb.Command(name=name, args=args), limits=limits, **fields)
        started = await self._client.start(request)
        self._started.append(started.job_id)
        return started.job_id

    async def end(self, job_id: str) -> pb.Job:
        """Wait for a job's end and return all that is known of it."""
        async for _ in self._client.output(job_id, tail=True):
            pass
        return (await self._client.status(job_id)).job

    async def run(self, *command: str, limits: pb.Limits | None = None, **fields: Any) -> pb.Job:
        """Start a job, wait for its end, and return all that is known of it."""
        return await self.end(await self.start(*command, limits=limits, **fields))

    def cgroup(self, job_id: str) -> Path:
        """Return the cgroup of a job, which is there while the job runs."""
        return self._directory / job_id

    async def close(self) -> None:
        """Kill what still runs."""
        while self._started:
            await self._client.stop(self._started.pop(), grace=0)


@pytest.fixture
async def jobs(server: Server, client: Client) -> AsyncIterator[Jobs]:
    """Jobs of the shared server."""
    jobs = Jobs(client, server.jobs_cgroup)
    yield jobs
    await jobs.close()


# The report


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Record a measurement: ``figures("memory_max", "memory.max", asked=…, measured=…, holds=…)``.

    Record before you assert, so that the report shows what does not hold. Without `holds` the
    verdict is that this kernel does not have the file.
    """
    recorded = pytestconfig.stash.setdefault(FIGURES, [])

    def record(
        limit: str, file: str, *, asked: str, measured: str, holds: bool | None = None
    ) -> None:
        verdicts: dict[bool | None, Verdict] = {
            True: "holds",
            False: "does not hold",
            None: "absent",
        }
        recorded.append(Figure(limit, file, asked, measured, verdicts[holds]))

    return record


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the report, and leave it for the host."""
    if UPTIME_AT_FIRST_TEST not in config.stash:
        return
    files = {row.limit: row.file for row in reversed(TABLE)}  # io.weight rather than BFQ's file
    files = {row.limit: files[row.limit] for row in TABLE}
    report = complete(config.stash.get(FIGURES, []), files)
    seconds = {
        "user space": float(os.environ["GUEST_UP"]),
        "first test": config.stash[UPTIME_AT_FIRST_TEST],
        "end": _uptime(),
    }
    about = {"kernel": platform.release(), "uptime": seconds}
    output = Path(os.environ["GUEST_OUTPUT"])
    (output / "guest-figures.json").write_text(to_json(report, about), encoding="utf-8")
    (output / "guest-figures.md").write_text(to_markdown(report), encoding="utf-8")
    times = ", ".join(f"{what} after {uptime:.1f} s" for what, uptime in seconds.items())
    terminalreporter.section(f"limits on Linux {platform.release()}")
    terminalreporter.write_line(f"{times}\n")
    terminalreporter.write(to_markdown(report))


def _uptime() -> float:
    """Seconds since the kernel has started."""
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
