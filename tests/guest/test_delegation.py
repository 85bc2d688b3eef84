"""A server inside a delegated cgroup limits its jobs, with no right to anything above."""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest

from jobworker.auth import certs as development_certs
from jobworker.cgroups.controllers import CONTROLLERS
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import MIB
from tests.support.delegation import ENTER, DelegatedServer, delegate_to_nobody, mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLEEP = pb.Command(name="sleep", args=["1000"])


@pytest.fixture
def unit(cgroup_root: Path) -> Path:
    """A cgroup as systemd makes it for a unit with Delegate=yes and User=nobody."""
    enabled = " ".join(f"+{name}" for name in CONTROLLERS)
    (cgroup_root / "cgroup.subtree_control").write_text(enabled, encoding="ascii")
    unit = cgroup_root / "jobworker-test.service"
    unit.mkdir()
    delegate_to_nobody(unit)
    mark(unit)
    return unit


@pytest.fixture
def delegated(unit: Path, tmp_path: Path) -> Iterator[Callable[[], DelegatedServer]]:
    """Start a server in the unit's cgroup as nobody."""
    development_certs.init(tmp_path / "certs")
    with contextlib.ExitStack() as stack:

        def start() -> DelegatedServer:
            directory = tmp_path / "server"
            directory.mkdir()
            server = DelegatedServer(directory, tmp_path / "certs", unit, as_nobody=True)
            stack.callback(server.close)
            return server

        yield start


def passed_on(cgroup: Path) -> set[str]:
    return set((cgroup / "cgroup.subtree_control").read_text(encoding="ascii").split())


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    """Run a command meanwhile; yield its pid."""
    running = subprocess.Popen(command)
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()


async def end_of(client, job_id: str) -> pb.Job:
    async for _ in client.output(job_id, tail=True):
        pass
    return (await client.status(job_id)).job


async def test_limits_hold_in_a_cgroup_that_belongs_to_nobody(delegated, unit):
    server = delegated()
    assert passed_on(unit) == passed_on(unit / "jobworker") == set(CONTROLLERS)
    async with server.client() as client:
        started = await client.start(
            pb.StartRequest(
                command=pb.Command(name="tail", args=["/dev/zero"]),
                limits=pb.Limits(memory_max=32 * MIB),
            )
        )
        job = await end_of(client, started.job_id)
    assert job.status.reason == pb.REASON_OUT_OF_MEMORY
    assert job.status.signal == signal.SIGKILL
    assert job.usage.memory_peak <= 32 * MIB


async def test_next_server_can_be_started_in_the_leaf_alone_while_a_job_runs(delegated, unit):
    server = delegated()
    request = pb.StartRequest(command=SLEEP, limits=pb.Limits(memory_max=32 * MIB))
    async with server.client() as client:
        job_id = (await client.start(request)).job_id
    server.terminate()

    # The condition on systemd in contrib/jobworker-unprivileged.service.
    with process("sleep", "1000") as pid, pytest.raises(OSError, match=f"Errno {errno.EBUSY}"):
        (unit / "cgroup.procs").write_text(str(pid), encoding="ascii")

    server.start_in = unit / "server"
    server.restart()
    limit = unit / "jobworker" / job_id / "memory.max"
    assert limit.read_text(encoding="ascii") == f"{32 * MIB}\n"
    async with server.client() as client:
        again = await client.start(request)
        for each in (job_id, again.job_id):
            assert (await client.status(each)).status.status == pb.STATUS_RUNNING
            await client.stop(each, grace=0)


async def test_limit_that_a_process_beside_the_server_is_in_the_way_of_names_it(delegated, unit):
    request = pb.StartRequest(command=SLEEP, limits=pb.Limits(memory_max=32 * MIB))
    with process(*ENTER, str(unit), "sleep", "1000") as pid:
        server = delegated()
        async with server.client() as client:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.start(request)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"processes are in that cgroup itself ({pid})" in refused.value.details()
