"""One follower of a finished job's output, against a raw Python TLS 1.3 socket with that file."""

from __future__ import annotations

import subprocess
import sys
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
PROGRAM: Final = Target(0.6, at_most=False)


def figures(
    server: Server, runner: asyncio.Runner, rounds: int, mebibytes: int
) -> Iterator[Figure]:
    """Measure how many MB of `mebibytes` MiB arrive a second."""
    size = mebibytes * baseline.MIB
    job_id = runner.run(write_output(server, size))
    file = server.directory / "log" / job_id / "output"
    with closing(baseline.Socket(file, server.certs)) as raw:
        yield paired(
            f"one follower of {mebibytes} MiB of finished output",
            "MB/s",
            TARGET,
            subject=lambda: runner.run(receive(server, job_id, size)),
            baseline=raw.receive,
            rounds=rounds,
        )
        yield paired(
            f"jobworker-cli output > file, {mebibytes} MiB, as a whole process",
            "MB/s",
            PROGRAM,
            subject=lambda: _program(server, job_id, size),
            baseline=raw.receive,
            rounds=rounds,
        )


async def write_output(server: Server, size: int) -> str:
    """Run a job that writes `size` random bytes; return its id."""
    command = pb.Command(name="head", args=["-c", str(size), "/dev/urandom"])
    async with server.client() as client:
        job = await client.start(pb.StartRequest(command=command))
        async for _ in client.output(job.job_id, tail=True, offset=size):
            pass
        return job.job_id


async def receive(server: Server, job_id: str, size: int) -> float:
    """Follow a job's output of `size` bytes with one client; return MB a second."""
    async with server.client() as client:
        await client.status(job_id)  # connects
        received = 0
        began = time.perf_counter()
        async for message in client.output(job_id):
            received += len(message.view)
        elapsed = time.perf_counter() - began
    assert received == size, f"{received} bytes instead of {size}"
    return received / elapsed / 1e6


def _program(server: Server, job_id: str, size: int) -> float:
    """Run the program with its output in a file; return MB a second, its start and end included."""
    certs = server.certs
    command = [sys.executable, "-m", "jobworker.cli", "--url", server.address]
    command += ["--cert", str(certs / "user_alpha.crt"), "--key", str(certs / "user_alpha.key")]
    command += ["--ca", str(certs / "ca.crt"), "output", job_id]
    target = server.directory / "received"
    with target.open("wb") as file:
        began = time.perf_counter()
        subprocess.run(command, stdout=file, check=True)
        elapsed = time.perf_counter() - began
    received = target.stat().st_size
    target.unlink()
    assert received == size, f"{received} bytes instead of {size}"
    return size / elapsed / 1e6
