"""A thousand running jobs: memory, and the time until a killed server has them all again."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from bench.processes import proportional_kib, resident_kib, shim_pids
from bench.server import running
from bench.table import Figure, Target, paired
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.server import Server

JOBS: Final = 1000
_AT_ONCE: Final = 16
_AIM: Final = Target(1, at_most=True)
_SECONDS: Final = 3.0
_IDLE_MIB: Final = 70.0
_JOB_KIB: Final = 10.0


def figures(runner: asyncio.Runner, rounds: int) -> Iterator[Figure]:
    """Measure a server of its own; the other side of each figure is the bound for it."""
    with running() as server:
        runner.run(_run_to_its_end(server))
        idle, idle_shared = _memory(server)
        yield _bounded("server, shim and keeper, idle: resident", "MiB", _IDLE_MIB, idle / 1024)
        yield _bounded("the same, shared pages counted once", "MiB", _IDLE_MIB, idle_shared / 1024)
        pids = runner.run(_start(server))
        grown = (_memory(server)[0] - idle) / JOBS
        yield _bounded(f"each of {JOBS:,} running jobs more", "KiB", _JOB_KIB, grown)
        serving: list[float] = []
        yield paired(
            f"{JOBS:,} running jobs, server killed and started: all of them right",
            "s",
            _AIM,
            subject=lambda: runner.run(_recover(server, pids, serving)),
            baseline=lambda: _SECONDS,
            rounds=rounds,
        )
        bounds = (_SECONDS,) * rounds
        name = f"{JOBS:,} running jobs, server killed and started: serving"
        yield Figure(name, "s", _AIM, tuple(serving[-rounds:]), bounds)


def _bounded(what: str, unit: str, bound: float, value: float) -> Figure:
    return Figure(f"{what} (bare: the bound)", unit, _AIM, (value,), (bound,))


async def _run_to_its_end(server: Server) -> None:
    """Run one job, so that all is loaded that a job needs."""
    async with server.client() as client:
        job = await client.start(pb.StartRequest(command=pb.Command(name="true")))
        await client.wait(job.job_id)


async def _start(server: Server) -> dict[str, int]:
    """Start the jobs, and return their main processes by id."""
    request = pb.StartRequest(command=pb.Command(name="sleep", args=["100000"]))
    async with server.client() as client:
        for _ in range(0, JOBS, _AT_ONCE):
            await asyncio.gather(*(client.start(request) for _ in range(_AT_ONCE)))
        return await _running(server)


async def _running(server: Server) -> dict[str, int]:
    request = pb.ListRequest(statuses=[pb.STATUS_RUNNING], page_size=1000)
    async with server.client() as client, aclosing(client.list_jobs(request)) as jobs:
        return {job.id: job.pid async for job in jobs}


async def _recover(server: Server, pids: dict[str, int], serving: list[float]) -> float:
    server.kill()
    began = time.perf_counter()
    await asyncio.to_thread(server.start)
    serving.append(time.perf_counter() - began)
    found = await _running(server)
    elapsed = time.perf_counter() - began
    assert found == pids, f"{len(pids)} jobs ran, {len(found)} are found again"
    return elapsed


def _memory(server: Server) -> tuple[int, int]:
    """Return KiB of the server and of the shim's processes: resident, and proportional."""
    processes = [server.pid, *shim_pids(server.directory / "run")]
    return sum(map(resident_kib, processes)), sum(map(proportional_kib, processes))
