"""What has to hold when a soak is over: every job accounted for, nothing left over."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import grpc

from bench import processes
from bench.soak import world as machine
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from bench.soak.actors import Run, Soak

SLACK: Final = 4
"""Descriptors that a server may have more than an idle one: connections that are being closed."""

_LIFE: Final = (pb.EVENT_TYPE_STARTED, pb.EVENT_TYPE_ENDED)


async def judge(soak: Soak) -> None:
    """Check every job, then the machine. What is wrong becomes a violation of the tally."""
    known = {run.job_id: run for run in soak.runs if run.job_id}
    for run in known.values():
        await _judge_job(soak, run)
    listed = await _list(soak)
    for job_id in listed - known.keys():
        soak.tally.violated(f"a job that nobody has started: {job_id}")
    for job_id in {run.job_id for run in known.values() if not run.removed} - listed:
        soak.tally.violated(f"a job that is not listed: {job_id}")
    for job_id in {run.job_id for run in known.values() if run.removed} & listed:
        soak.tally.violated(f"a job that was removed is listed: {job_id}")
    await _judge_events(soak, known)
    await _judge_machine(soak, listed)


async def _judge_job(soak: Soak, run: Run) -> None:
    tally, plan = soak.tally, run.plan
    try:
        status = (await soak.client.status(run.job_id)).job
    except grpc.aio.AioRpcError as error:
        tally.violated(f"job {run.job_id} is not known: {error.details()}")
        return
    detail = status.status
    if run.status is not None and run.status != detail:
        tally.violated(f"job {run.job_id} ended twice: {run.status} and {detail}")
    if detail.status == pb.STATUS_LOST:
        tally.lost.append(f"{run.job_id}: {detail.message}")
    if fault := plan.fault_of(detail, told=run.told):
        tally.violated(f"job {run.job_id} {fault}; its plan: {plan}; {detail}")
    tally.count(f"jobs that {plan.kind.value}")
    times_run = len((soak.ran / str(plan.number)).read_bytes())
    if times_run != 1:
        tally.violated(f"job {run.job_id} was executed {times_run} times")
    _judge_output(soak, run, status)
    if plan.removed:
        await soak.client.remove(run.job_id)
        run.removed = True
        tally.count("jobs removed")


def _judge_output(soak: Soak, run: Run, status: pb.Job) -> None:
    written = soak.world.output(run.job_id)
    if status.output_size != len(written):
        soak.tally.violated(
            f"job {run.job_id}: its size is {status.output_size}, the file's {len(written)}"
        )
    if run.plan.is_whole(status.status) and len(written) != run.plan.size:
        soak.tally.violated(f"job {run.job_id}: {len(written)} of {run.plan.size} bytes are there")
    soak.tally.count("bytes verified by hash", len(written))
    expected = run.plan.content(0, len(written))
    if hashlib.sha256(written).digest() != hashlib.sha256(expected).digest():
        soak.tally.violated(f"job {run.job_id}: its output is not what it wrote")


async def _list(soak: Soak) -> set[str]:
    listed: list[str] = []
    async with aclosing(soak.client.list_jobs(pb.ListRequest(page_size=1000))) as jobs:
        async for each in jobs:
            listed.append(each.id)
            if each.status.status in (pb.STATUS_PENDING, pb.STATUS_RUNNING):
                soak.tally.violated(f"a job that has not ended: {each.id}")
    if len(set(listed)) != len(listed):
        soak.tally.violated("a job is listed twice")
    return set(listed)


async def _judge_events(soak: Soak, known: dict[str, Run]) -> None:
    def told() -> bool:
        return all(pb.EVENT_TYPE_ENDED in soak.events.get(each, ()) for each in known)

    await machine.settled(told)
    for job_id, run in known.items():
        seen = soak.events.get(job_id, [])
        life = [each for each in seen if each in _LIFE]
        if life != list(_LIFE) and (run.status is None or run.status.status != pb.STATUS_LOST):
            names = [pb.EventType.Name(each) for each in seen]
            soak.tally.violated(f"job {job_id} has the events {names}")


async def _judge_machine(soak: Soak, listed: set[str]) -> None:
    world, tally = soak.world, soak.tally
    if not await machine.settled(lambda: not world.cgroups()):
        tally.violated(f"cgroups are left: {world.cgroups()}")
    if left := world.log_directories() - listed:
        tally.violated(f"log directories of no job: {left}")
    server = world.server.pid
    shim = world.shim_pid()
    if not await machine.settled(lambda: processes.watches(server) == 0):
        tally.violated(f"{processes.watches(server)} inotify watches are left")
    tally.count("descriptors of the server at the end", processes.descriptors(server))
    tally.count("resident KiB of the server at the end", processes.resident_kib(server))
    idle = soak.idle_descriptors
    if not await machine.settled(lambda: processes.descriptors(server) <= idle + SLACK):
        tally.violated(
            f"the server has {processes.descriptors(server)} descriptors, an idle one {idle}"
        )
    if shim is not None:
        try:
            tally.count("descriptors of the shim at the end", processes.descriptors(shim))
            tally.count("resident KiB of the shim at the end", processes.resident_kib(shim))
        except FileNotFoundError:
            tally.violated("the shim is gone")
