"""How a job ended whose shim was killed, on a kernel that forgets a process once it is reaped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import Gate
from tests.support.shim import keepers, shim_pid, signal_shim
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support.server import Server


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """What the jobs wait for."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
async def shim(server: Server) -> AsyncIterator[int]:
    """The pid of the server's shim; when the test is over, the server has another one."""
    killed = shim_pid(server.run_dir)
    yield killed
    await until(lambda: shim_pid(server.run_dir) != killed, "there is another shim")


def gone(pid: int) -> Callable[[], bool]:
    """Return what says whether a process has been reaped."""
    return lambda: not Path(f"/proc/{pid}").exists()


async def test_an_end_after_the_shims_is_known_from_its_keeper(server, client, jobs, gate, shim):
    job_id = await jobs.start("sh", "-c", f"{gate.wait}; exit 7")
    pid = (await client.status(job_id)).job.pid
    signal_shim(server.run_dir, signal.SIGKILL)
    await until(gone(shim), "the keeper has reaped the shim")
    gate.open()
    await until(gone(pid), "the keeper has reaped the job")
    status = (await jobs.end(job_id)).status
    assert (status.status, status.exit_code) == (pb.STATUS_EXITED, 7)


async def test_an_end_that_neither_shim_nor_keeper_saw_is_lost_with_the_reason(
    server, client, jobs, gate, shim
):
    job_id = await jobs.start("sh", "-c", f"{gate.wait}; exit 7")
    pid = (await client.status(job_id)).job.pid
    (keeper,) = keepers(server.run_dir)
    # What nobody has reaped yet tells its end to a server that looks in time.
    server.process.send_signal(signal.SIGSTOP)
    try:
        for process in (keeper, shim):
            os.kill(process, signal.SIGKILL)
            await until(gone(process), "init has reaped it")
        gate.open()
        await until(gone(pid), "init has reaped the job")
    finally:
        server.process.send_signal(signal.SIGCONT)
    status = (await jobs.end(job_id)).status
    assert status.status == pb.STATUS_LOST
    assert "does not tell how a reaped process ended (Linux 6.15 and later do)" in status.message
