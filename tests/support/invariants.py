"""What holds of every server at rest, whatever was killed before: nothing lost or left over."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.cgroups import populated
from tests.support.waiting import PATIENCE, until

if TYPE_CHECKING:
    from pathlib import Path

    from jobworker.rpc.client import Client
    from tests.support.server import Server


async def check_invariants(
    server: Server,
    client: Client,
    *,
    settled: set[str] | None = None,
    patience: float = PATIENCE,
) -> None:
    """Wait until registry, directories, cgroups and processes agree; fail with what does not.

    What is under way (a job that just ends, a start that is just undone) comes to rest by itself.
    `settled` are jobs that need not be asked about again: those that have ended are added.
    """
    settled = set() if settled is None else settled
    found: list[str] = []

    async def none_violated() -> bool:
        found[:] = await violations(server, client, settled)
        return not found

    try:
        await until(none_violated, patience=patience)
    except pytest.fail.Exception:
        pytest.fail("; ".join(found))


async def violations(server: Server, client: Client, settled: set[str]) -> list[str]:
    """Return in words what does not agree just now."""
    found = []
    records = _recorded(server.state_dir / "jobs.db")
    directories = _names(server.log_dir)
    cgroups = {path.name for path in _directories(server.jobs_cgroup)}
    found += [f"job {each} has no directory" for each in sorted(records - directories)]
    found += [f"directory {each} has no record" for each in sorted(directories - records)]
    found += [f"cgroup {each} has no record" for each in sorted(cgroups - records)]
    for job_id in sorted(records - settled):
        found += await _violations_of_job(server, client, job_id, settled)
    return found


async def _violations_of_job(
    server: Server, client: Client, job_id: str, settled: set[str]
) -> list[str]:
    try:
        job = (await client.status(job_id)).job
    except grpc.aio.AioRpcError as error:
        return [f"job {job_id} is recorded, but the server says {error.code().name}"]
    state = pb.Status.Name(job.status.status).removeprefix("STATUS_").lower()
    cgroup = server.jobs_cgroup / job_id
    if state == "pending":
        return [f"job {job_id} is neither running nor ended"]
    if state == "running":
        return [] if populated(cgroup) else [f"job {job_id} is running, but has no process"]
    found = []
    if cgroup.exists():
        found.append(f"job {job_id} has ended ({state}), but its cgroup is there")
    if state == "lost" and not job.status.message:
        found.append(f"job {job_id} is lost without a reason")
    if not found:
        settled.add(job_id)
    return found


def _recorded(registry: Path) -> set[str]:
    with closing(
        sqlite3.connect(f"file:{registry}?mode=ro", uri=True, timeout=PATIENCE)
    ) as database:
        return {job_id for (job_id,) in database.execute("SELECT id FROM jobs")}


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _directories(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_dir()] if directory.exists() else []
