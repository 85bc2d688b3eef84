"""A server that a test can have killed, with its shim or without, at a step of the program."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from jobworker.testing import faults
from jobworker.testing.faults import SERVER
from tests.support.invariants import check_invariants
from tests.support.processes import environment
from tests.support.server import Server
from tests.support.waiting import until, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from jobworker.rpc.client import Client


class FaultyServer(Server):
    """The real programs; what `order` says is done to them."""

    def __init__(self, directory: Path, certs: Path, cgroup_root: Path, *options: str) -> None:
        self.orders = directory / "orders"
        self.settled: set[str] = set()
        program = (sys.executable, "-m", "jobworker.testing.faults", str(self.orders))
        super().__init__(directory, certs, cgroup_root, *options, program=program)

    def order(self, step: str, *victims: str, count: int = 1, after: Path | None = None) -> None:
        """Have `victims` killed when `step` is reached."""
        server = self.process.pid if self.process.poll() is None else None
        faults.order(
            self.orders,
            step,
            *victims,
            run_dir=self.run_dir,
            server=server,
            count=count,
            after=after,
        )

    async def check_invariants(self, client: Client) -> None:
        """Check what holds at rest, of jobs that have not been found to have ended before."""
        await check_invariants(self, client, settled=self.settled)

    def countermand(self) -> bool:
        """Take the order back; return whether it had not been carried out."""
        try:
            self.orders.unlink()
        except FileNotFoundError:
            return False
        return True

    async def carried_out(self, *victims: str) -> None:
        """Wait until the order was carried out; then a server that was killed has been reaped."""
        await until(lambda: not self.orders.exists(), "the step was reached")
        if SERVER in victims:
            await asyncio.to_thread(self.process.wait)

    def start_and_die(self) -> None:
        """Start a server that is killed before it is ready, as was ordered."""
        with self.messages.open("ab") as messages:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env=environment(),
            )
        wait_until(lambda: self.process.poll() is not None, "the server was killed")
        assert not self.orders.exists(), "the server ended by itself"
