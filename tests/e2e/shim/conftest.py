"""A real shim and real cgroups: needs root, and cgroup v2 in the kernel."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import jobworker
from jobworker.cgroups.cgroup import Cgroup
from jobworker.shim import Client, ExitRecord, Launch, Launched, wire
from tests.support.cgroups import own_cgroup
from tests.support.shim import all_is_gone, shim_is_gone, shim_pid, signal_shim
from tests.support.waiting import PATIENCE, until

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Iterator

LIBRARY = str(Path(jobworker.__file__).parent.parent)
PATH = "/usr/local/bin:/usr/bin:/bin"


@pytest.fixture(scope="session")
def cgroup_root(cgroup_mount: Path) -> Iterator[Path]:
    """A cgroup for all tests of the shim."""
    with own_cgroup(cgroup_mount) as root:
        yield root


@dataclass
class Job:
    """What a server would keep of a job."""

    id: str
    directory: Path
    cgroup: Cgroup
    launched: Launched

    @property
    def output(self) -> bytes:
        return (self.directory / "output").read_bytes()

    def status(self) -> dict[str, str]:
        """Return /proc/<pid>/status of the main process, which must be alive."""
        lines = Path(f"/proc/{self.launched.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


class Host:
    """A run directory with its shim, and a server's way to use it."""

    def __init__(self, run_dir: Path, log_dir: Path, cgroup_root: Path) -> None:
        self.run_dir = run_dir
        self.log_dir = log_dir
        self.cgroup_root = cgroup_root
        self.records: dict[str, ExitRecord] = {}
        self.disconnected = 0
        self._pidfds: list[int] = []
        self._clients: list[Client] = []

    until = staticmethod(until)

    async def connect(self) -> Client:
        client = await Client.connect(self.run_dir, self._on_ended, self._on_disconnect)
        self._clients.append(client)
        return client

    def start_shim(self, before: str = "", **options: Any) -> None:
        """Start a shim as a client does, with the statement `before` executed first."""
        program = f"import sys; sys.path.insert(0, {LIBRARY!r})\n{before}\n"
        program += "from jobworker.shim.main import main; main()"
        command = [sys.executable, "-I", "-S", "-c", program, str(self.run_dir)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE, **options)

    def signal_shim(self, signum: signal.Signals) -> None:
        signal_shim(self.run_dir, signum)

    def _on_ended(self, record: ExitRecord) -> None:
        self.records[record.job_id] = record

    def _on_disconnect(self) -> None:
        self.disconnected += 1

    async def launch(
        self, client: Client, *argv: str, stdin: bytes = b"", job_id: str = "", **options: Any
    ) -> Job:
        job_id = job_id or str(uuid.uuid4())
        directory = self.log_dir / job_id
        directory.mkdir(exist_ok=True)
        cgroup = Cgroup(self.cgroup_root / job_id)
        Path(cgroup.path).mkdir(exist_ok=True)
        options = {
            "executables": [f"{each}/{argv[0]}" for each in PATH.split(":")]
            if "/" not in argv[0]
            else [argv[0]],
            "env": {"PATH": PATH},
            "working_directory": "/",
            **options,
        }
        launch = Launch(job_id=job_id, argv=list(argv), cgroup_path=cgroup.path, **options)
        split = bool(options.get("split_stderr"))
        with self.open_all(directory, cgroup, stdin, split_stderr=split) as fds:
            launched = await client.launch(launch, **fds)
        self._pidfds.append(launched.pidfd)
        return Job(job_id, directory, cgroup, launched)

    @staticmethod
    @contextlib.contextmanager
    def open_all(
        directory: Path, cgroup: Cgroup, stdin: bytes, *, split_stderr: bool = False
    ) -> Iterator[dict[str, int]]:
        """Open what travels with a launch."""
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            fds = {
                "output": os.open(directory / "output", flags, 0o600),
                "cgroup": cgroup.open(),
                "job_dir": os.open(directory, os.O_RDONLY | os.O_DIRECTORY),
            }
            if split_stderr:
                fds["stderr"] = os.open(directory / "stderr", flags, 0o600)
            try:
                yield {"stdin": file.fileno(), **fds}
            finally:
                for fd in fds.values():
                    os.close(fd)

    async def ended(self, job: Job) -> ExitRecord:
        await until(lambda: job.id in self.records)
        return self.records[job.id]

    async def run(self, client: Client, *argv: str, **options: Any) -> tuple[Job, ExitRecord]:
        job = await self.launch(client, *argv, **options)
        return job, await self.ended(job)

    def shim_pid(self) -> int:
        return shim_pid(self.run_dir)

    def shim_descriptors(self) -> list[str]:
        """Return what the shim's descriptors lead to."""
        targets = []
        for link in Path(f"/proc/{self.shim_pid()}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                targets.append(str(link.readlink()))
        return sorted(targets)

    def shim_log(self) -> str:
        return (self.run_dir / wire.LOG_NAME).read_text()

    def shim_cpu(self) -> float:
        """Return how many seconds of CPU time the shim has used (proc(5), utime and stime)."""
        stat = Path(f"/proc/{self.shim_pid()}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def shim_is_gone(self) -> bool:
        """Whether nobody holds the lock."""
        return shim_is_gone(self.run_dir)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        for pidfd in self._pidfds:
            os.close(pidfd)
        for cgroup in self.cgroup_root.iterdir():
            if cgroup.is_dir():
                Cgroup(cgroup).kill()
        await until(lambda: all_is_gone(self.run_dir))
        for cgroup in self.cgroup_root.iterdir():
            if cgroup.is_dir():
                await until(lambda cgroup=cgroup: not Cgroup(cgroup).populated())
                Cgroup(cgroup).remove()


@pytest.fixture
async def host(cgroup_root: Path) -> AsyncIterator[Host]:
    """A run directory without a shim. Outside tmp_path, so that other users can reach it."""
    base = Path(tempfile.mkdtemp(prefix="jobworker-test-"))
    base.chmod(0o755)
    for name in ("run", "log"):
        (base / name).mkdir()
    host = Host(base / "run", base / "log", cgroup_root)
    yield host
    await host.close()
    shutil.rmtree(base)


@pytest.fixture
async def client(host: Host) -> Client:
    return await host.connect()


@pytest.fixture(params=["clone3", "fork"])
async def any_client(request: pytest.FixtureRequest, host: Host) -> Client:
    """A client of a shim whose kernel offers clone3, and of one whose kernel says ENOSYS."""
    if request.param == "fork":
        host.start_shim(
            "import jobworker.shim.spawn as s; s._calls = s._calls._replace(clone3=100_000)"
        )
    return await host.connect()
