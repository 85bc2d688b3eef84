"""A shim in memory: it starts nothing, and jobs end, or the shim dies, when a test says so.

Each job has a real process of its own, a child that waits, so that its pidfd is a real one. A test
says when that ends: it does not hear SIGTERM, with which a stop begins.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

from jobworker.errors import JobNotFound, ShimUnavailable
from jobworker.shim import ExitRecord, Launch, Launched

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from jobworker.errors import JobWorkerError
    from jobworker.shim.proc import Stat


class FakeShim:
    """What stands for all shims of a run directory; ``with`` ends the children that are left.

    `connect` is what `shim.Client.connect` is. `launched` are the jobs that were launched, and
    `stops` the stop requests, in order. `refusal` is raised by the next launch, and `connect`
    fails as often as `unreachable` says. Calls for the jobs in `hanging` (or for all, if "" is in
    it) are never answered.
    """

    def __init__(self) -> None:
        self.launched: dict[str, Launch] = {}
        self.stops: list[tuple[str, int, float]] = []
        self.clients: list[FakeClient] = []
        self.refusal: JobWorkerError | None = None
        self.unreachable = 0
        self.hanging: set[str] = set()
        self.before_attach: Callable[[str], None] = lambda _job_id: None
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    async def connect(
        self,
        run_dir: object,
        *,
        on_ended: Callable[[ExitRecord], None],
        on_disconnect: Callable[[], None],
        version: int | None = None,
    ) -> Any:
        """Make a client, which knows the jobs that are live now."""
        del run_dir, version
        await asyncio.sleep(0)
        if self.unreachable > 0:
            self.unreachable -= 1
            raise ShimUnavailable("no shim can be started")
        client = FakeClient(self, on_ended, on_disconnect)
        self.clients.append(client)
        return client

    @property
    def connected(self) -> list[FakeClient]:
        """The clients that are neither closed nor lost."""
        return [client for client in self.clients if not client.lost]

    def end(self, job_id: str, **how: Any) -> None:
        """End a job as `how` says (exit_code, signal, stopped, …) and tell every client."""
        self.kill(job_id)
        del self.launched[job_id]
        record = self.record(job_id, **how)
        for client in self.connected:
            client.on_ended(record)

    def record(self, job_id: str, **how: Any) -> ExitRecord:
        """Return the exit record of a job that ended as `how` says."""
        now = time.time()
        pid = self.processes[job_id].pid
        given = {"started_at": now, "ended_at": now, "runtime": 0.0, "output_size": 0, **how}
        return ExitRecord(job_id=job_id, boot_id="", pid=pid, **given)

    def disconnect(self) -> None:
        """Break every connection; the jobs stay with the shim."""
        for client in self.connected:
            client.lose()

    def die(self) -> None:
        """Die: every connection breaks, and the next shim knows none of the jobs."""
        self.launched.clear()
        self.disconnect()

    def kill(self, job_id: str) -> None:
        """End a job's process, without a word."""
        self.processes[job_id].kill()
        self.processes[job_id].wait()


class FakeClient:
    """What `shim.Client` is, connected to a FakeShim."""

    def __init__(
        self,
        shim: FakeShim,
        on_ended: Callable[[ExitRecord], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        self._shim = shim
        self._on_disconnect = on_disconnect
        self.on_ended = on_ended
        self.lost = False
        self.shim: Stat | None = None
        self.jobs = frozenset(shim.launched)

    async def launch(self, launch: Launch, **_fds: int) -> Launched:
        """Start a job, or raise the shim's `refusal`."""
        await self._turn(launch.job_id)
        if (refusal := self._shim.refusal) is not None:
            self._shim.refusal = None
            raise refusal
        self._shim.processes[launch.job_id] = _deaf_process()
        self._shim.launched[launch.job_id] = launch
        return self._process(launch.job_id)

    async def attach(self, job_id: str) -> Launched:
        """Return the process of a live job."""
        self._shim.before_attach(job_id)
        await self._turn(job_id)
        if job_id not in self._shim.launched:
            raise JobNotFound(job_id)
        return self._process(job_id)

    async def stop(self, job_id: str, *, signal: int, grace: float) -> None:
        """Note a stop request of a live job."""
        await self._turn(job_id)
        if job_id not in self._shim.launched:
            raise JobNotFound(job_id)
        self._shim.stops.append((job_id, signal, grace))

    async def close(self) -> None:
        """Close the connection."""
        self.lost = True

    def lose(self) -> None:
        """Lose the connection."""
        self.lost = True
        self._on_disconnect()

    async def _turn(self, job_id: str) -> None:
        await asyncio.sleep(0)
        if self._shim.hanging & {"", job_id}:
            await asyncio.get_running_loop().create_future()
        if self.lost:
            raise ShimUnavailable("the connection to the shim is lost")

    def _process(self, job_id: str) -> Launched:
        pid = self._shim.processes[job_id].pid
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            start_time = int(file.read().rpartition(")")[2].split()[19])
        stopped = any(job_id == each for each, _, _ in self._shim.stops)
        return Launched(pid, start_time, time.time(), os.pidfd_open(pid), stopped)


def _deaf_process() -> subprocess.Popen[bytes]:
    """Start a process that does not hear SIGTERM: a child inherits what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(["sleep", "1000"])  # noqa: S607
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
