"""The connections to all shims of a run directory: our own, and those of other versions.

New jobs go to the shim of this server's own version, which is started if need be. Those that a
server of another version has left behind keep their jobs until these have ended; where we can speak
to one, we do, and close the connection with its last job, so that it leaves.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from jobworker import shim
from jobworker.errors import ShimUnavailable
from jobworker.job.custody.link import Link
from jobworker.shim import wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = logging.getLogger(__name__)


class _Other:
    """A connection to a shim of another version, and its jobs that have not ended."""

    def __init__(self, client: shim.Client) -> None:
        self.client = client
        self.jobs = set(client.jobs)


class Links:
    """As `Link`, for all shims; `reconcile` is called when any of them is gone."""

    def __init__(
        self,
        run_dir: Path,
        *,
        on_ended: Callable[[shim.ExitRecord], None],
        reconcile: Callable[[shim.Client], Awaitable[None]],
        connect: Callable[..., Awaitable[shim.Client]] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._on_ended = on_ended
        self._reconcile = reconcile
        self._connect_to = connect or shim.Client.connect
        self._others: dict[int, _Other] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._own = Link(run_dir, on_ended=on_ended, reconcile=reconcile, connect=connect)

    async def open(self) -> None:
        """Reach all shims, starting our own if there is none. Raises ShimUnavailable."""
        await self._reach_others()
        await self._own.open()

    async def client(self) -> shim.Client:
        """Return the connection to our own shim; see `Link.client`."""
        return await self._own.client()

    def holder(self, job_id: str) -> shim.Client | None:
        """Return the connection to the shim of another version that has a job."""
        found = (each.client for each in self._others.values() if job_id in each.jobs)
        return next((client for client in found if not client.lost), None)

    async def close(self) -> None:
        """Give up all connections; jobs go on."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._own.close()
        for other in self._others.values():
            await other.client.close()
        self._others.clear()

    async def _reach_others(self) -> None:
        for version in shim.versions(self._run_dir):
            if version == wire.VERSION or version in self._others:
                continue
            if version not in wire.SPEAKS:
                log.warning(
                    "there is a shim of protocol version %d in %s, to which this server (version "
                    "%d) cannot speak; its jobs are watched, and it is left alone",
                    version,
                    self._run_dir,
                    wire.VERSION,
                )
                continue
            try:
                await self._reach(version)
            except ShimUnavailable as error:
                log.info("no shim of protocol version %d: %s", version, error)

    async def _reach(self, version: int) -> None:
        client = await self._connect_to(
            self._run_dir,
            on_ended=lambda end: self._ended(version, end),
            on_disconnect=lambda: self._lost(version),
            version=version,
        )
        log.info("a shim of protocol version %d has %d jobs", version, len(client.jobs))
        self._others[version] = _Other(client)
        self._leave_if_idle(version)

    def _ended(self, version: int, end: shim.ExitRecord) -> None:
        self._on_ended(end)
        if (other := self._others.get(version)) is not None:
            other.jobs.discard(end.job_id)
            self._leave_if_idle(version)

    def _leave_if_idle(self, version: int) -> None:
        if not self._others[version].jobs:
            self._keep(self._others.pop(version).client.close())

    def _lost(self, version: int) -> None:
        if self._others.pop(version, None) is not None and not self._closing:
            log.error("the shim of protocol version %d is gone", version)
            self._keep(self._look_again())

    async def _look_again(self) -> None:
        await self._reach_others()
        try:
            await self._reconcile(await self._own.client())
        except ShimUnavailable:
            return  # The next connection to our own asks about all jobs.

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
