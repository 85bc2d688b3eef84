"""The events of the stand-in for the service: told by tests and by what clients ask for."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class ScriptedEvents:
    """All events there have been, and who watches them; a token is the number of events before."""

    def __init__(self) -> None:
        self.told: list[pb.WatchResponse] = []
        self.watchers = 0
        self._news = asyncio.Event()

    def tell(
        self, kind: pb.EventType.ValueType, job: pb.Job, user: str = "", *, signal: int = 0
    ) -> None:
        """Let something happen to a job, and wake who watches."""
        event = pb.WatchResponse(
            resume_token=str(len(self.told) + 1),
            type=kind,
            job_id=job.id,
            owner=job.owner,
            name=job.name,
            status=job.status,
            user=user,
            signal=signal,
        )
        event.time.FromNanoseconds(time.time_ns())
        self.told.append(event)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def wait_for_watchers(self, count: int) -> None:
        """Return when `count` Watch streams are open."""
        while self.watchers != count:
            await self._news.wait()

    async def watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        """Yield what a Watch sends."""
        self.watchers += 1
        self._wake()
        try:
            async with aclosing(self._events(request)) as events:
                async for event in events:
                    yield event
        finally:
            self.watchers -= 1
            self._wake()

    async def _events(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        position = int(request.resume_token or len(self.told))
        if not request.resume_token:
            yield pb.WatchResponse(resume_token=str(position))
        while True:
            while position < len(self.told):
                event = self.told[position]
                position += 1
                if request.job_id not in ("", event.job_id):
                    continue
                if request.owner in ("", event.owner):
                    yield event
                if request.job_id and event.type == pb.EVENT_TYPE_REMOVED:
                    return
            await self._news.wait()
