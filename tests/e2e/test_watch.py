"""Watching jobs while the server is killed: every event exactly once, in order."""

import asyncio
import json
import sqlite3
import subprocess
from contextlib import aclosing, closing

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.processes import environment
from tests.support.waiting import PATIENCE, until

STARTED, ENDED = pb.EVENT_TYPE_STARTED, pb.EVENT_TYPE_ENDED


class Watcher:
    """A client that keeps what it is told."""

    def __init__(self, client, **filters):
        self.told = []
        self._begun = asyncio.Event()
        self._task = asyncio.create_task(self._watch(client, filters))

    async def _watch(self, client, filters):
        async with aclosing(client.watch(**filters)) as events:
            async for event in events:
                self._begun.set()
                self.told.append(event)

    async def begun(self):
        await asyncio.wait_for(self._begun.wait(), PATIENCE)
        return self

    def events(self):
        return [(each.type, each.job_id) for each in self.told if each.type]

    async def until_told(self, count):
        await until(lambda: self._task.done() or len(self.events()) >= count, f"{count} events")
        if self._task.done():
            self._task.result()

    async def leave(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def recorded(running):
    """Return type and job of all events in the registry, which no server has open."""
    with closing(sqlite3.connect(running.state_dir / "jobs.db")) as registry:
        rows = registry.execute("SELECT type, job_id FROM events ORDER BY sequence").fetchall()
    return [(pb.EventType.Value(f"EVENT_TYPE_{kind.upper()}"), job_id) for kind, job_id in rows]


async def start(client, request):
    """Start a job, however often the server dies; its request_id keeps it from being two."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return (await client.start(request)).job_id
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                await asyncio.sleep(0.05)


async def test_a_server_killed_in_a_burst_of_jobs_tells_every_event_exactly_once(server):
    running = server()
    async with running.client() as client, running.client() as watching:
        watcher = await Watcher(watching).begun()
        jobs = []
        for round_ in range(3):
            requests = [
                sh("exit 3", request_id=f"{round_}-{number}", labels={"round": str(round_)})
                for number in range(12)
            ]
            before = len(watcher.events())
            burst = asyncio.gather(*[start(client, request) for request in requests])
            await watcher.until_told(before + 3 + 5 * round_)
            await asyncio.to_thread(running.kill)
            await asyncio.to_thread(running.restart)
            jobs += await burst
        await watcher.until_told(2 * len(jobs))
        await asyncio.to_thread(running.terminate)
        told = watcher.events()
        await watcher.leave()
    assert told == recorded(running)
    assert sorted(told) == sorted((kind, job) for job in jobs for kind in (STARTED, ENDED))
    for job in jobs:
        assert told.index((STARTED, job)) < told.index((ENDED, job))


async def test_a_token_of_a_killed_server_goes_on_with_an_end_that_nobody_saw(server, gate):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; exit 9", name="n"))).job_id
        async with aclosing(client.watch(job_id=job_id)) as events:
            token = (await anext(events)).resume_token
        await asyncio.to_thread(running.kill)
        gate.open()
        await until((running.log_dir / job_id / "exit.json").exists)
        await asyncio.to_thread(running.restart)
        async with asyncio.timeout(PATIENCE), aclosing(client.watch(token)) as events:
            event = await anext(events)
        job = (await client.status(job_id)).job
    assert (event.type, event.job_id, event.name) == (ENDED, job_id, "n")
    assert (event.owner, event.user) == ("user_alpha", "")
    assert event.status == job.status
    assert event.time == job.ended_at


async def test_who_asked_for_a_stop_is_told(server):
    running = server()
    async with running.client() as client, running.client("user_bravo") as looking:
        watcher = await Watcher(looking, owner="user_alpha").begun()
        other = await Watcher(looking, owner="user_bravo").begun()
        job_id = (await client.start(sh("exec sleep 1000"))).job_id
        await client.stop(job_id)
        await watcher.until_told(3)
        asked = [(each.type, each.user) for each in watcher.told if each.type]
        assert asked == [
            (STARTED, "user_alpha"),
            (pb.EVENT_TYPE_STOPPING, "user_alpha"),
            (ENDED, ""),
        ]
        assert watcher.told[-1].status.status == pb.STATUS_STOPPED
        assert other.events() == []
        await watcher.leave()
        await other.leave()


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (pb.WatchRequest(resume_token="x"), grpc.StatusCode.INVALID_ARGUMENT, "resume_token: "),
        (pb.WatchRequest(job_id="x"), grpc.StatusCode.INVALID_ARGUMENT, "job_id: "),
        (
            pb.WatchRequest(job_id="5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"),
            grpc.StatusCode.NOT_FOUND,
            "5f0c3a52",
        ),
    ],
)
async def test_what_cannot_be_watched_is_refused(server, request_, code, said):
    running = server()
    async with running.client() as client:
        with pytest.raises(grpc.aio.AioRpcError, match=said) as refusal:
            await anext(
                client.watch(request_.resume_token, job_id=request_.job_id, owner=request_.owner)
            )
    assert refusal.value.code() is code


async def test_a_watch_does_not_keep_the_server_from_ending(server):
    running = server()
    async with running.client() as client:
        watcher = await Watcher(client).begun()
        assert await asyncio.to_thread(running.terminate) == 0
        await watcher.leave()


async def test_the_program_goes_on_by_itself_when_the_server_is_killed(server):
    running = server()
    watching = subprocess.Popen(
        running.cli_command("watch", "--format", "json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )

    async def line():
        reading = asyncio.to_thread(watching.stdout.readline)
        return json.loads(await asyncio.wait_for(reading, PATIENCE))

    try:
        assert (await line())["type"] == "EVENT_TYPE_UNSPECIFIED"
        async with running.client() as client:
            jobs = [(await client.start(sh("exit 0"))).job_id]
            await asyncio.to_thread(running.kill)
            await asyncio.to_thread(running.restart)
            jobs.append(await start(client, sh("exit 0", request_id="r")))
        told = [await line() for _ in range(4)]
    finally:
        watching.kill()
        watching.communicate()
    assert sorted((each["job_id"], each["type"]) for each in told) == sorted(
        (job, kind) for job in jobs for kind in ("EVENT_TYPE_STARTED", "EVENT_TYPE_ENDED")
    )
