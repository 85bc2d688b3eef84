"""A registry of a million finished jobs, against one whose jobs fill a page: start, and lists."""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Final

from bench.server import running
from bench.table import Figure, Target, paired
from jobworker.job.record import JobRecord
from jobworker.job.registry import rows
from jobworker.job.registry.store import Store
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from typing import Any

    from bench.server import Server

TARGET: Final = Target(1.2, at_most=True)
PAGE: Final = 100
"""Jobs of a page, and of the registry that a large one is compared with."""
LISTS: Final = 10
"""How many lists are measured together."""
_NEWEST: Final = 1_800_000_000.0


def figures(runner: asyncio.Runner, rounds: int, jobs: int) -> Iterator[Figure]:
    """Measure with servers of its own: one of whose registry has `jobs` finished jobs."""
    with running() as large, running() as small:
        for server, count in ((large, jobs), (small, PAGE)):
            server.stop()
            with closing(Store.open(server.directory / "state" / "jobs.db")) as store:
                _fill(store, count)
        yield paired(
            f"start of a server with {jobs:,} finished jobs",
            "s",
            TARGET,
            subject=lambda: _start(large),
            baseline=lambda: _start(small),
            rounds=rounds,
        )
        for what, request in (
            ("first page of a list", pb.ListRequest()),
            ("first page of a user's", pb.ListRequest(owner="user_alpha")),
            ("first page by a label", pb.ListRequest(labels={"kind": "bench"})),
        ):
            yield paired(
                f"{what}, of {jobs:,} jobs",
                "ms",
                TARGET,
                subject=lambda request=request: runner.run(_list(large, request)),  # type: ignore[misc]
                baseline=lambda request=request: runner.run(_list(small, request)),  # type: ignore[misc]
                rounds=rounds,
            )


def _fill(store: Store, count: int) -> None:
    """Add finished jobs, as rows, in one transaction."""
    store.read("PRAGMA cache_size = -400000", {})  # KiB: ids come in no order.
    with store.transaction():
        store.write_many(rows.INSERT, _rows(count))


def _rows(count: int) -> Iterator[dict[str, Any]]:
    spec = JobSpec(command="sh", args=("-c", "true"), name="bench", labels={"kind": "bench"})
    record = JobRecord(
        id="",
        owner="user_alpha",
        spec=spec,
        created_at=0.0,
        status=JobStatus(State.EXITED, exit_code=0, reason=Reason.EXITED),
        output_size=1000,
        usage={"cpu_user_us": 1000, "cpu_system_us": 1000, "memory_peak": 1_000_000},
    )
    row = rows.values(record, "")
    for number in range(count):
        moment = _NEWEST - count + number
        times = {"created_at": moment, "started_at": moment, "ended_at": moment}
        yield row | times | {"id": str(uuid.uuid4())}


def _start(server: Server) -> float:
    """Start a server that ended in an orderly way; return the seconds until it is ready."""
    server.stop()
    began = time.perf_counter()
    server.start()
    return time.perf_counter() - began


async def _list(server: Server, request: pb.ListRequest) -> float:
    async with server.client() as client:
        await _first_page(client, request)  # connects
        began = time.perf_counter()
        for _ in range(LISTS):
            await _first_page(client, request)
        return (time.perf_counter() - began) / LISTS * 1000


async def _first_page(client: Any, request: pb.ListRequest) -> None:
    async for job in client.list_jobs(request, limit=PAGE):
        assert job.status.status == pb.STATUS_EXITED
