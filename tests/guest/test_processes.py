"""The limit on processes holds, and whatever they do, a stop leaves none of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.guest.measuring import counters, number
from tests.support.processes import alive
from tests.support.waiting import PATIENCE, until

FORK_BOMB = (
    *(sys.executable, "-I", "-S", "-c"),
    "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
)


@pytest.mark.proves("pids_max")
async def test_fork_bomb_is_contained_and_stopped_at_once(jobs, client, figures):
    limit = 30
    job_id = await jobs.start(*FORK_BOMB, limits=pb.Limits(pids_max=limit))
    cgroup = jobs.cgroup(job_id)
    counts = [0]

    def refused() -> int:
        counts.append(number(cgroup / "pids.current"))
        return counters(cgroup / "pids.events")["max"]

    await until(lambda: refused() >= 1000 or max(counts) > 2 * limit, "the bomb went off")
    began = time.monotonic()
    await client.stop(job_id, grace=0)
    seconds = time.monotonic() - began

    job = (await client.status(job_id)).job
    most = max(*counts, job.usage.pids_peak)
    holds = most == limit
    figures(
        "pids_max",
        "pids.max",
        asked=str(limit),
        measured=f"a fork bomb had {most} at most; stopped in {seconds:.2f} s",
        holds=holds,
    )
    assert holds
    assert not cgroup.exists()
    assert seconds < PATIENCE


async def test_stop_ends_a_tree_that_forks_twice_leaves_the_session_and_ignores_sigterm(
    jobs, client
):
    script = """
        trap '' TERM
        ( ( sleep 1000 & ) & )
        setsid sh -c '( setsid sleep 1000 & ) & sleep 1000' &
        sleep 1000
    """
    job_id = await jobs.start("sh", "-c", script)
    cgroup = jobs.cgroup(job_id)

    def pids() -> list[int]:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]

    def commands() -> list[str]:
        return [name(pid) for pid in pids()]

    await until(lambda: sorted(commands()) == ["sh", "sh", *["sleep"] * 4], "the tree has grown")
    tree = pids()

    await client.stop(job_id, grace=0.5)

    job = (await client.status(job_id)).job
    assert (job.status.status, job.status.reason) == (pb.STATUS_STOPPED, pb.REASON_STOPPED)
    assert not any(map(alive, tree))
    assert not cgroup.exists()


async def test_end_is_told_when_the_daemon_that_a_job_left_is_gone(jobs, client):
    job_id = await jobs.start("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!")

    output = b""
    async for message in client.output(job_id, tail=True):
        output += message.output
        if message.has_end:
            daemon_lives, cgroup_exists = alive(int(output)), jobs.cgroup(job_id).exists()

    assert not daemon_lives
    assert not cgroup_exists
    assert (await client.status(job_id)).job.status.exit_code == 0


def name(pid: int) -> str:
    """Return the name of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
