"""What goes on in a soak at the same time: clients with their jobs, a watcher, and a killer."""

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
from jobworker.rpc.resume import StreamInterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
    from random import Random

    from bench.soak.plan import Plan
    from bench.soak.tally import Tally
    from bench.soak.world import World
    from jobworker.rpc.client import Client
    from jobworker.rpc.frames import OutputMessage
    from jobworker.rpc.v1 import jobworker_pb2 as pb

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


class _Reading:
    """What one follower has got, as a digest, and a digest of what it should have got."""

    def __init__(self, run: Run, offset: int, enough: int | None) -> None:
        self.offset = offset
        self._run = run
        self._end = None if enough is None else offset + enough
        self._got = hashlib.sha256()
        self._written = hashlib.sha256()
        self._size: int | None = None
        self._misplaced = ""

    async def go_on(self, client: Client) -> None:
        """Read on from where it is."""
        async with aclosing(
            client.output(self._run.job_id, tail=True, offset=self.offset)
        ) as messages:
            async for message in messages:
                self._take(message)
                if self._end is not None and self.offset >= self._end:
                    return

    def _take(self, message: OutputMessage) -> None:
        if message.output and message.offset != self.offset:
            self._misplaced = f"at {self.offset} it got byte {message.offset}"
        self._got.update(message.output)
        self._written.update(self._run.plan.content(self.offset, len(message.output)))
        self.offset += len(message.output)
        if message.has_end:
            self._size = message.end.size

    def faults(self) -> Iterator[str]:
        """Yield what was wrong with it, in words."""
        if self._misplaced:
            yield self._misplaced
        if self._got.digest() != self._written.digest():
            yield f"what it got up to {self.offset} is not what the job wrote"
        if self._size not in (None, self.offset):
            yield f"it got {self.offset} of {self._size} bytes"


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
    events: dict[str, list[pb.EventType.ValueType]] = field(
        default_factory=lambda: defaultdict(list)
    )
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
            run.status = answer

    async def _follow(self, run: Run, leaves_after: int) -> None:
        """Follow an output to its end; after `leaves_after` bytes leave, and come back there."""
        offset = 0
        if leaves_after:
            offset = await self._read(run, 0, leaves_after)
            self.tally.count("followers that left and came back")
        await self._read(run, offset, None)
        self.tally.count("followers")

    async def _read(self, run: Run, begin: int, enough: int | None) -> int:
        """Read from byte `begin`, to the end or `enough` bytes; return how far that came."""
        reading = _Reading(run, begin, enough)
        try:
            async with asyncio.timeout(ENDS_WITHIN):
                await self._insist(lambda: reading.go_on(self.client))
        except TimeoutError:
            self.tally.violated(f"a follower of job {run.job_id} came to no end")
        except (grpc.aio.AioRpcError, StreamInterrupted) as error:
            self.tally.violated(f"a follower of job {run.job_id} was cut off: {error}")
        self.tally.count("bytes verified by hash", reading.offset - begin)
        for fault in reading.faults():
            self.tally.violated(f"a follower of job {run.job_id} from {begin}: {fault}")
        return reading.offset

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
