"""What goes on in a soak at the same time: clients with their jobs, followers, a watcher, a killer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from bench.soak import plan as planning
from jobworker.errors import StreamInterrupted
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from random import Random

    from bench.soak.plan import Plan
    from bench.soak.tally import Tally
    from bench.soak.world import World
    from jobworker.rpc.client import Client

_Answer = TypeVar("_Answer")

RETRY: Final = 0.1
"""Seconds between two attempts of a call that found no server."""
ATTEMPTS_FOR: Final = 120.0
"""Seconds after which a call that still finds no server is a violation."""
ENDS_WITHIN: Final = 180.0
"""Seconds after which a job that should have ended is one."""

_LATER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(slots=True)
class Run:
    """A job that was asked for: its plan, its id once it is known, and what became of it."""

    plan: Plan
    job_id: str = ""
    told: bool = False
    status: pb.StatusDetail | None = None
    removed: bool = False


@dataclass(slots=True)
class Soak:
    """What all actors share. `stopping` is set when the time is up.

    `idle_descriptors` is how many an idle server has.
    """

    world: World
    client: Client
    random: Random
    tally: Tally
    ran: Path
    idle_descriptors: int
    runs: list[Run] = field(default_factory=list)
    events: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def start_jobs(self) -> None:
        """Start one job after the other, and see each to its end."""
        while not self.stopping.is_set():
            run = Run(planning.draw(len(self.runs), self.random))
            self.runs.append(run)
            await self._see_through(run)
            await asyncio.sleep(self.random.uniform(0, 0.05))

    async def _see_through(self, run: Run) -> None:
        number = run.plan.number
        request = run.plan.request(self.ran / str(number))
        try:
            run.job_id = (await self._insist(lambda: self.client.start(request))).job_id
        except grpc.aio.AioRpcError as error:
            self.tally.violated(f"job {number} did not start: {error.details()}")
            return
        self.tally.count("jobs started")
        async with asyncio.TaskGroup() as tasks:
            for leaves_after in run.plan.followers:
                tasks.create_task(self._follow(run, leaves_after))
            if run.plan.stop_after is not None:
                tasks.create_task(self._stop(run, run.plan.stop_after))
            tasks.create_task(self._wait(run))

    async def _stop(self, run: Run, after: float) -> None:
        await asyncio.sleep(after)
        run.told = True
        try:
            await self._insist(lambda: self.client.stop(run.job_id))
            self.tally.count("stops")
        except grpc.aio.AioRpcError as error:
            self.tally.violated(f"cannot stop job {run.job_id}: {error.details()}")

    async def _wait(self, run: Run) -> None:
        try:
            async with asyncio.timeout(ENDS_WITHIN):
                answer = await self._insist(lambda: self.client.wait(run.job_id))
        except TimeoutError:
            self.tally.violated(f"job {run.job_id} ({run.plan}) has not ended")
        except (grpc.aio.AioRpcError, StreamInterrupted) as error:
            self.tally.violated(f"cannot wait for job {run.job_id}: {error}")
        else:
            run.status = answer.status

    async def _follow(self, run: Run, leaves_after: int) -> None:
        """Follow an output to its end; after `leaves_after` bytes leave, and come back there."""
        offset = 0
        if leaves_after:
            offset = await self._read(run, 0, leaves_after)
            self.tally.count("followers that left and came back")
        await self._read(run, offset, None)
        self.tally.count("followers")

    async def _read(self, run: Run, offset: int, enough: int | None) -> int:
        digest, expected = hashlib.sha256(), hashlib.sha256()
        begin, size = offset, None
        try:
            async with (
                asyncio.timeout(ENDS_WITHIN),
                aclosing(self.client.output(run.job_id, tail=True, offset=offset)) as messages,
            ):
                async for message in messages:
                    if message.output and message.offset != offset:
                        self.tally.violated(
                            f"a follower of job {run.job_id} at {offset} got {message.offset}"
                        )
                    digest.update(message.output)
                    expected.update(run.plan.content(offset, len(message.output)))
                    offset += len(message.output)
                    if message.HasField("end"):
                        size = message.end.size
                    if enough is not None and offset - begin >= enough:
                        break
        except TimeoutError:
            self.tally.violated(f"a follower of job {run.job_id} came to no end")
            return offset
        except (grpc.aio.AioRpcError, StreamInterrupted) as error:
            self.tally.violated(f"a follower of job {run.job_id} was cut off: {error}")
            return offset
        self.tally.count("bytes verified by hash", offset - begin)
        if digest.digest() != expected.digest():
            self.tally.violated(f"job {run.job_id}: bytes {begin} to {offset} are not what it wrote")
        if size is not None and size != offset:
            self.tally.violated(f"job {run.job_id}: a follower got {offset} of {size} bytes")
        return offset

    async def _insist(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Make a call until there is a server that answers it."""
        deadline = time.monotonic() + ATTEMPTS_FOR
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _LATER or time.monotonic() > deadline:
                    raise
                self.tally.count("calls made again")
                await asyncio.sleep(RETRY)

    async def watch(self) -> None:
        """Note every event, until cancelled."""
        async with aclosing(self.client.watch(give_up_after=ATTEMPTS_FOR)) as events:
            async for event in events:
                if event.type:
                    self.events[event.job_id].append(event.type)
                    self.tally.count("events")

    async def kill(self) -> None:
        """Kill the server, the shim or both, again and again."""
        while not self.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), self.random.uniform(0.5, 8))
            await self._kill_once(self.random.choice(("server", "server", "shim", "both")))

    async def _kill_once(self, victim: str) -> None:
        if victim == "shim":
            self._kill_shim()
            return
        first = victim == "both" and self.random.random() < 0.5
        if first:
            self._kill_shim()
        self.world.kill_server()
        self.tally.count("kills of the server")
        if victim == "both" and not first:
            self._kill_shim()
        await asyncio.sleep(self.random.choice((0, 0, self.random.uniform(0, 2))))
        await self.world.start_server()

    def _kill_shim(self) -> None:
        if self.world.kill_shim():
            self.tally.count("kills of the shim")
