"""The server under test as the soak kills and starts it, and what it has left on the machine."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import TYPE_CHECKING, Final

from bench.processes import command_line
from bench.server import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.server import Server

_SERVES: Final = re.compile(rb"shim (\d+) serves")


class World:
    """One server, its shim, and the time between a kill and the next start."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.jobs_cgroup = server.cgroup_root / "jobworker"

    def kill_server(self) -> None:
        """End the server as a crash would."""
        self.server.kill()

    async def start_server(self) -> None:
        """Start it again, and return when it is ready."""
        await asyncio.to_thread(self.server.start)

    def kill_shim(self) -> bool:
        """End the shim as a crash would; return False if it had gone by itself."""
        pid = self.shim_pid()
        if pid is None:
            return False
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if self.shim_pid() != pid or b"jobworker.shim" not in command_line(pid):
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def shim_pid(self) -> int | None:
        """Return the pid of the last shim that served, as its log names it."""
        try:
            found = _SERVES.findall((self.server.directory / "run" / "shim.log").read_bytes())
        except FileNotFoundError:
            return None
        return int(found[-1]) if found else None

    def cgroups(self) -> set[str]:
        """Return the names of the jobs' cgroups that are there."""
        return {path.name for path in self.jobs_cgroup.iterdir() if path.is_dir()}

    def log_directories(self) -> set[str]:
        """Return the names of the jobs' log directories that are there."""
        return {path.name for path in (self.server.directory / "log").iterdir()}

    def output(self, job_id: str) -> bytes:
        """Return a job's output as it is on the disk."""
        return (self.server.directory / "log" / job_id / "output").read_bytes()


async def settled(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Wait until `condition()` holds; return whether it came to that."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not condition():
        if loop.time() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
