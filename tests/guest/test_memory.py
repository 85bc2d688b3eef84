"""Limits on memory hold, and a job that breaks them harms nobody else."""

from __future__ import annotations

import signal

from jobworker.rpc.v1 import jobworker_pb2 as pb

MIB = 2**20
ALLOCATES_WITHOUT_END = ("tail", "/dev/zero")
"""It keeps the last line of what it reads, and there is none."""


async def test_job_beyond_memory_max_is_killed_and_the_reason_is_said(jobs, figures):
    limit = 64 * MIB

    job = await jobs.run(*ALLOCATES_WITHOUT_END, limits=pb.Limits(memory_max=limit))

    peak = job.usage.memory_peak
    figures(
        "memory_max",
        "memory.max",
        asked="64 MiB",
        measured=f"{peak / MIB:.1f} MiB at most",
        holds=0.9 * limit <= peak <= limit,
    )
    assert job.status.reason == pb.REASON_OUT_OF_MEMORY
    assert job.status.signal == signal.SIGKILL
    assert job.usage.oom_kills == 1
    assert 0.9 * limit <= peak <= limit


async def test_job_that_runs_out_of_memory_leaves_its_neighbour_alone(jobs):
    neighbour = await jobs.start("sleep", "1000")

    await jobs.run(*ALLOCATES_WITHOUT_END, limits=pb.Limits(memory_max=16 * MIB))

    assert "populated 1" in (jobs.cgroup(neighbour) / "cgroup.events").read_text()
