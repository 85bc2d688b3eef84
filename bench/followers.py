"""A thousand followers of one job: how fast together, what they cost when they do not read."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

from bench import baseline
from bench.follow import receive, write_output
from bench.processes import resident_kib
from bench.table import Figure, Target, paired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from bench.server import Server
    from jobworker.rpc.client import Client

FOLLOWERS: Final = 1000
CONNECTIONS: Final = 20
TOGETHER: Final = 4 * baseline.MIB
"""Bytes that each of those gets who read together."""

_TOGETHER: Final = Target(0.7, at_most=False)
_BESIDE: Final = Target(0.7, at_most=False)
_MEMORY: Final = Target(1, at_most=True)
_MEMORY_BOUND: Final = 250.0
"""MiB."""


def figures(
    server: Server, runner: asyncio.Runner, rounds: int, mebibytes: int
) -> Iterator[Figure]:
    """Measure a thousand that stall, a reader beside them, and a thousand that read together.

    The bare side of both speeds is one follower of `mebibytes` MiB, alone.
    """
    one = mebibytes * baseline.MIB
    big = runner.run(write_output(server, one))
    small = runner.run(write_output(server, TOGETHER))
    # First, while the server is fresh: memory that was once used does not all go back.
    memory: list[float] = []

    def beside() -> float:
        speed, used = runner.run(_beside(server, big, one))
        memory.append(used)
        return speed

    yield paired(
        f"a reader beside {FOLLOWERS} followers that never read (bare: one alone)",
        "MB/s",
        _BESIDE,
        subject=beside,
        baseline=lambda: runner.run(receive(server, big, one)),
        rounds=rounds,
    )
    yield Figure(
        f"the server with {FOLLOWERS} followers that never read (bare: the bound)",
        "MiB",
        _MEMORY,
        tuple(memory[1:]),
        (_MEMORY_BOUND,) * (len(memory) - 1),
    )

    yield paired(
        f"{FOLLOWERS} followers of one job together, 4 MiB each (bare: one follower)",
        "MB/s",
        _TOGETHER,
        subject=lambda: runner.run(_together(server, small)),
        baseline=lambda: runner.run(receive(server, big, one)),
        rounds=rounds,
    )


@asynccontextmanager
async def _clients(server: Server) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(server.client()) for _ in range(CONNECTIONS)]


async def _together(server: Server, job_id: str) -> float:
    async def follow(client: Client) -> int:
        received = 0
        async with aclosing(client.output(job_id)) as messages:
            async for message in messages:
                received += len(message.view)
        return received

    async with _clients(server) as clients:
        await asyncio.gather(*(client.status(job_id) for client in clients))  # connects
        began = time.perf_counter()
        sizes = await asyncio.gather(
            *(follow(clients[number % CONNECTIONS]) for number in range(FOLLOWERS))
        )
        elapsed = time.perf_counter() - began
    assert set(sizes) == {TOGETHER}, f"they got {sorted(set(sizes))} bytes"
    return sum(sizes) / elapsed / 1e6


async def _beside(server: Server, job_id: str, size: int) -> tuple[float, float]:
    """Return MB a second of a reader beside the stalled, and MiB of the server's memory."""
    async with _clients(server) as clients, AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                aclosing(clients[number % CONNECTIONS].output(job_id, tail=True))
            )
            for number in range(FOLLOWERS)
        ]
        # All at once: those of one connection share what it may send ahead of its readers.
        first = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.wait(first, timeout=30)
        for waiting in first:
            waiting.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        speed = await receive(server, job_id, size)
        return speed, resident_kib(server.pid) / 1024
