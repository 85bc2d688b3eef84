"""The connection to the shim, kept up: when a shim has died, another one is started and reached."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from jobworker import shim, steps
from jobworker.errors import ShimUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = logging.getLogger(__name__)

PATIENCE: Final = 10.0
"""Seconds that a call waits for a shim to be there."""
_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 5.0


class Link:
    """Gives out a connection whose shim has been asked about all live jobs.

    `on_ended` is called for each end that a shim reports, `reconcile` with each new connection
    before anybody else may use it: by then the shim has died, or this server is a new one, and the
    state of the jobs has to be found out. `connect` makes the connection.
    """

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
        self._connection: asyncio.Task[shim.Client] | None = None
        self._closing = False

    async def open(self) -> None:
        """Reach the shim, starting one if there is none. Raises ShimUnavailable."""
        self._connection = asyncio.create_task(self._connect())
        await asyncio.shield(self._connection)

    async def client(self) -> shim.Client:
        """Return the connection, once there is one and all jobs are accounted for.

        Raises ShimUnavailable after `PATIENCE` seconds, and when the link is closed.
        """
        if self._connection is None or self._closing:
            raise ShimUnavailable("the connection to the shim is closed")
        try:
            return await asyncio.wait_for(asyncio.shield(self._connection), PATIENCE)
        except asyncio.CancelledError:
            if not (self._closing and self._connection.cancelled()):
                raise
            raise ShimUnavailable("the connection to the shim has been closed") from None
        except TimeoutError:
            raise ShimUnavailable(
                f"no shim can be reached; {self._run_dir}/shim.log and the server's log say why"
            ) from None

    async def close(self) -> None:
        """Give up the connection; jobs go on."""
        self._closing = True
        if self._connection is None:
            return
        self._connection.cancel()
        await asyncio.wait([self._connection])
        if not self._connection.cancelled() and self._connection.exception() is None:
            await self._connection.result().close()

    def _on_disconnect(self) -> None:
        # While a connection is being made, whoever makes it notices by itself.
        if not self._closing and self._connection is not None and self._connection.done():
            log.error("the shim is gone; starting another one")
            self._connection = asyncio.create_task(self._reconnect())

    async def _connect(self) -> shim.Client:
        client = await self._connect_to(
            self._run_dir, on_ended=self._on_ended, on_disconnect=self._on_disconnect
        )
        steps.reached("server.recovery.connected")
        try:
            await self._reconcile(client)
            steps.reached("server.recovery.reconciled")
            _require_alive(client)
        except BaseException:
            await client.close()
            raise
        return client

    async def _reconnect(self) -> shim.Client:
        delay = _FIRST_DELAY
        while True:
            try:
                return await self._connect()
            except (OSError, ShimUnavailable) as error:
                log.error("cannot reach a shim, trying again: %s", error)  # noqa: TRY400 - expected
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_DELAY)


def _require_alive(client: shim.Client) -> None:
    if client.lost:
        raise ShimUnavailable("the shim died while it was asked about jobs")
