"""From a write of a job to its arrival at a follower, against what people notice as delay."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from bench.table import Figure, Target, paired
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from bench.server import Server

_AIM: Final = Target(1, at_most=True)
_BOUNDS: Final = {"median": 5.0, "99th percentile": 25.0}
"""Milliseconds."""

_LINES: Final = 300
_WRITER: Final = f"""
import os, time
for _ in range({_LINES}):
    time.sleep(0.007)
    os.write(1, b"%d\\n" % time.monotonic_ns())
"""


def figures(server: Server, runner: asyncio.Runner, rounds: int) -> Iterator[Figure]:
    """Measure the delay of the lines of a slow writer; the other side is the bound for it."""
    for name, bound in _BOUNDS.items():

        def measure(name: str = name) -> float:
            return _pick(name, runner.run(_delays(server)))

        yield paired(
            f"write to delivery, one follower, {name} (bare: the bound)",
            "ms",
            _AIM,
            subject=measure,
            baseline=lambda bound=bound: bound,  # type: ignore[misc]
            rounds=rounds,
        )


def _pick(name: str, delays: list[float]) -> float:
    return (
        statistics.median(delays) if name == "median" else statistics.quantiles(delays, n=100)[98]
    )


async def _delays(server: Server) -> list[float]:
    delays = []
    rest = b""
    async with server.client() as client:
        command = pb.Command(name=sys.executable, args=["-ISc", _WRITER])
        job_id = (await client.start(pb.StartRequest(command=command))).job_id
        async with aclosing(client.output(job_id, tail=True)) as messages:
            async for message in messages:
                now = time.monotonic_ns()
                *lines, rest = (rest + message.output).split(b"\n")
                delays += [(now - int(line)) / 1e6 for line in lines]
    assert len(delays) == _LINES, f"{len(delays)} lines instead of {_LINES}"
    return delays
