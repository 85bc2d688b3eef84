"""From Start to *exited*, over mutual TLS, against a bare spawn, execve and wait."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from bench import baseline
from bench.table import Figure, Target, paired
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.server import Server
    from jobworker.rpc.client import Client

ONE: Final = Target(5, at_most=True)
IN_PARALLEL: Final = Target(0.5, at_most=False)

_JOBS: Final = 40
_SPAWNS: Final = 200


def figures(server: Server, runner: asyncio.Runner, rounds: int) -> Iterator[Figure]:
    """Measure the time of one start, and how many a second eight clients get."""
    yield paired(
        "Start to exited of `true`, one client",
        "ms",
        ONE,
        subject=lambda: 1e3 * runner.run(_one_client(server)),
        baseline=lambda: 1e3 * baseline.spawn(_SPAWNS),
        rounds=rounds,
    )
    yield paired(
        f"starts to exited a second, {baseline.WORKERS} clients",
        "/s",
        IN_PARALLEL,
        subject=lambda: runner.run(_clients(server)),
        baseline=lambda: baseline.spawn_in_parallel(_SPAWNS),
        rounds=rounds,
    )


async def _one_client(server: Server) -> float:
    async with server.client() as client:
        await _run_true(client)
        began = time.perf_counter()
        for _ in range(_JOBS):
            await _run_true(client)
        return (time.perf_counter() - began) / _JOBS


async def _clients(server: Server) -> float:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(server.client()) for _ in range(baseline.WORKERS)
        ]
        await asyncio.gather(*(_run_true(client) for client in clients))

        async def run(client: Client) -> None:
            for _ in range(_JOBS):
                await _run_true(client)

        began = time.perf_counter()
        await asyncio.gather(*(run(client) for client in clients))
        return len(clients) * _JOBS / (time.perf_counter() - began)


async def _run_true(client: Client) -> None:
    """Run ``true`` and follow its output, whose end says that the job has finished."""
    job = await client.start(pb.StartRequest(command=pb.Command(name="true")))
    status = None
    async for message in client.output(job.job_id, tail=True):
        status = message.end.status
    assert status is not None
    assert (status.status, status.exit_code) == (pb.STATUS_EXITED, 0), f"true: {status}"
