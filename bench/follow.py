"""One follower of a finished job's output, against a raw Python TLS 1.3 socket with that file."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from bench import baseline
from bench.table import Figure, Target, paired
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from bench.server import Server

TARGET: Final = Target(0.8, at_most=False)


def figures(
    server: Server, runner: asyncio.Runner, rounds: int, mebibytes: int
) -> Iterator[Figure]:
    """Measure how many MB of `mebibytes` MiB arrive a second."""
    size = mebibytes * baseline.MIB
    job_id = runner.run(_write(server, size))
    file = server.directory / "log" / job_id / "output"
    with closing(baseline.Socket(file, server.certs)) as raw:
        yield paired(
            f"one follower of {mebibytes} MiB of finished output",
            "MB/s",
            TARGET,
            subject=lambda: runner.run(_receive(server, job_id, size)),
            baseline=raw.receive,
            rounds=rounds,
        )


async def _write(server: Server, size: int) -> str:
    command = pb.Command(name="head", args=["-c", str(size), "/dev/urandom"])
    async with server.client() as client:
        job = await client.start(pb.StartRequest(command=command))
        async for _ in client.output(job.job_id, tail=True, offset=size):
            pass
        return job.job_id


async def _receive(server: Server, job_id: str, size: int) -> float:
    async with server.client() as client:
        await client.status(job_id)  # connects
        received = 0
        began = time.perf_counter()
        async for message in client.output(job_id):
            received += len(message.output)
        elapsed = time.perf_counter() - began
    assert received == size, f"{received} bytes instead of {size}"
    return received / elapsed / 1e6
