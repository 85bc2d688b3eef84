"""The client for asyncio users: the service's methods as typed coroutines over one mTLS channel."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import grpc

from jobworker.auth.tls import client_credentials
from jobworker.rpc import channel, frames
from jobworker.rpc.outputs import Outputs
from jobworker.rpc.resume import FINISHED, GIVE_UP_AFTER, OutputProgress, Patience, problem_of
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.v1 import jobworker_pb2_grpc
from jobworker.rpc.watch import WatchProgress

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Sequence
    from types import TracebackType
    from uuid import UUID


MAX_PAGE: Final = 1000
"""Jobs of one page of a listing that the server gives at most."""


class Client:
    """A connection to one jobworker server; use it as ``async with Client(…) as client``.

    `target` is what `channel.parse_target` accepts; `cert`, `key` and `ca` are PEM files. Creating
    a client connects to nothing: the first call does. Raises ValueError if the target is malformed
    and ConfigError if a file is unusable. Calls raise grpc.aio.AioRpcError.
    """

    def __init__(
        self,
        target: str,
        *,
        cert: str | os.PathLike[str],
        key: str | os.PathLike[str],
        ca: str | os.PathLike[str],
        program: str = "jobworker-client",
    ) -> None:
        address = channel.parse_target(target)
        credentials = client_credentials(Path(cert), Path(key), Path(ca))

        def connect(ahead: int) -> grpc.aio.Channel:
            options = channel.options(program, ahead=ahead)
            return grpc.aio.secure_channel(address, credentials, options=options)

        self._channel = connect(channel.WIDE)
        self._stub = jobworker_pb2_grpc.JobWorkerServiceStub(self._channel)
        self._outputs = Outputs(self._channel, connect)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the server just now."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Cancel what is under way and close the channel."""
        await self._channel.close()
        await self._outputs.close()

    async def start(self, request: pb.StartRequest) -> pb.StartResponse:
        """Start a job; returns when its command has been executed."""
        return await self._stub.Start(request)

    async def stop(
        self, job_id: UUID | str, grace: float | None = None, signal: int | None = None
    ) -> pb.StopResponse:
        """Stop a job; returns when it has ended. `grace` is seconds, None the job's own."""
        return await self._stub.Stop(channel.stop_request(job_id, grace, signal))

    async def signal(
        self, job_id: UUID | str, signum: int, *, all_processes: bool = False
    ) -> pb.SignalResponse:
        """Send a signal to a job's main process, or to all of its processes."""
        return await self._stub.Signal(
            pb.SignalRequest(job_id=str(job_id), signal=signum, all=all_processes)
        )

    async def wait(
        self,
        job_id: UUID | str,
        timeout: float | None = None,  # noqa: ASYNC109 - it is no failure
        *,
        give_up_after: float = GIVE_UP_AFTER,
        on_interrupted: Callable[[str], None] = lambda _problem: None,
    ) -> pb.StatusDetail:
        """Return the status of a job once it has ended, or as it is after `timeout` seconds.

        None waits as long as it takes. A lost connection is taken up again as by `output`, and the
        time goes on meanwhile: after `give_up_after` seconds without the server, or when the time
        has passed and it is still away, this raises StreamInterrupted.
        """
        patience = Patience(give_up_after)
        begun = time.monotonic()
        left = timeout
        while True:
            patience.asks(time.monotonic())
            try:
                return (await self._stub.Wait(channel.wait_request(job_id, left))).status
            except grpc.aio.AioRpcError as error:
                failure = error
            now = time.monotonic()
            delay = patience.lost(now, failure)
            if left == 0:
                raise patience.interrupted(problem_of(failure)) from failure
            if patience.must_notify(now):
                on_interrupted(problem_of(failure))
            await asyncio.sleep(delay if left is None else min(delay, left))
            if timeout is not None:
                left = max(begun + timeout - time.monotonic(), 0.0)

    async def remove(self, job_id: UUID | str) -> pb.RemoveResponse:
        """Remove a finished job and its output."""
        return await self._stub.Remove(pb.RemoveRequest(job_id=str(job_id)))

    async def status(self, job_id: UUID | str) -> pb.StatusResponse:
        """Ask for everything that is known of a job."""
        return await self._stub.Status(pb.StatusRequest(job_id=str(job_id)))

    async def list_pages(
        self, request: pb.ListRequest, *, limit: int | None = None
    ) -> AsyncGenerator[Sequence[pb.Job], None]:
        """Yield the jobs that match, newest first, a page at a time; at most `limit` in all.

        The request's own page_size and page_token are where it begins. Pages may be empty.
        """
        asked = pb.ListRequest()
        asked.CopyFrom(request)
        left = limit
        while left is None or left > 0:
            if left is not None:
                asked.page_size = min(left, request.page_size or MAX_PAGE)
            response = await self._stub.List(asked)
            yield response.jobs
            if left is not None:
                left -= len(response.jobs)
            if not response.next_page_token:
                return
            asked.page_token = response.next_page_token

    async def list_jobs(
        self, request: pb.ListRequest, *, limit: int | None = None
    ) -> AsyncGenerator[pb.Job, None]:
        """Yield the jobs that match, newest first; at most `limit`."""
        async with aclosing(self.list_pages(request, limit=limit)) as pages:
            async for page in pages:
                for found in page:
                    yield found

    async def update_limits(self, job_id: UUID | str, limits: pb.Limits) -> pb.UpdateLimitsResponse:
        """Change limits of a running job; what `limits` leaves out stays as it is."""
        return await self._stub.UpdateLimits(
            pb.UpdateLimitsRequest(job_id=str(job_id), limits=limits)
        )

    async def pause(self, job_id: UUID | str) -> pb.PauseResponse:
        """Freeze a running job; returns when all of it is frozen."""
        return await self._stub.Pause(pb.PauseRequest(job_id=str(job_id)))

    async def resume(self, job_id: UUID | str) -> pb.ResumeResponse:
        """Let a paused job go on."""
        return await self._stub.Resume(pb.ResumeRequest(job_id=str(job_id)))

    async def stats(
        self,
        job_id: UUID | str,
        *,
        follow: bool = False,
        interval: float | None = None,
        give_up_after: float = GIVE_UP_AFTER,
        on_interrupted: Callable[[str], None] = lambda _problem: None,
    ) -> AsyncGenerator[pb.StatsResponse, None]:
        """Yield what a job uses: one sample, or with `follow` one every `interval` seconds.

        The last one is that of the job's end. None is the server's own interval, a second.
        With `follow` a lost connection is taken up again as by `output`, with the samples of the
        time between missing; after `give_up_after` seconds it raises StreamInterrupted.
        """
        patience = Patience(give_up_after)
        finished = False
        while not finished:
            patience.asks(time.monotonic())
            call = self._stub.Stats(channel.stats_request(job_id, follow=follow, interval=interval))
            failure: grpc.RpcError | None = None
            try:
                async for message in call:
                    patience.answered()
                    patience.gets_ahead()
                    finished = not follow or message.status.status in FINISHED
                    yield message
            except grpc.aio.AioRpcError as error:
                if not follow:
                    raise
                failure = error
            finally:
                call.cancel()
            if not finished:
                now = time.monotonic()
                delay = patience.lost(now, failure)
                if patience.must_notify(now):
                    on_interrupted(problem_of(failure))
                await asyncio.sleep(delay)

    async def watch(
        self,
        resume_token: str = "",
        *,
        job_id: UUID | str = "",
        owner: str = "",
        give_up_after: float = GIVE_UP_AFTER,
        on_interrupted: Callable[[str], None] = lambda _problem: None,
    ) -> AsyncGenerator[pb.WatchResponse, None]:
        """Yield what happens to jobs: to all, to one, or to an owner's; from now on, or a token on.

        A message whose type is EVENT_TYPE_UNSPECIFIED has no event, only the token to go on with;
        the first one of a watch that begins now is such a one. It goes on until it is left
        (``aclosing``), or the one job is removed. When the connection is lost the watch is taken up
        where it was, so that every event arrives exactly once; `on_interrupted` is as for `output`.
        After `give_up_after` seconds without the server it raises WatchInterrupted.
        """
        progress = WatchProgress(
            resume_token, job_id=job_id, owner=owner, give_up_after=give_up_after
        )
        while not progress.finished:
            call = self._stub.Watch(progress.request(time.monotonic()))
            failure: grpc.RpcError | None = None
            try:
                async for message in call:
                    progress.accept(message)
                    yield message
            except grpc.aio.AioRpcError as error:
                failure = error
            finally:
                call.cancel()
            if not progress.finished:
                now = time.monotonic()
                delay = progress.lost(now, failure)
                if progress.must_notify(now):
                    on_interrupted(problem_of(failure))
                await asyncio.sleep(delay)

    async def output(
        self,
        job_id: UUID | str,
        *,
        tail: bool = False,
        offset: int = 0,
        last_bytes: int | None = None,
        last_lines: int | None = None,
        stream: pb.OutputStream.ValueType = pb.OUTPUT_STREAM_UNSPECIFIED,
        give_up_after: float = GIVE_UP_AFTER,
        reached: bool = False,
        on_interrupted: Callable[[str], None] = lambda _problem: None,
    ) -> AsyncGenerator[frames.OutputMessage, None]:
        """Yield a job's output; the last message carries `end`.

        It begins at byte `offset`, or with the last bytes or lines there are. With `tail` it goes
        on until the job has finished. When the connection is lost the stream is taken up where it
        was, so that every byte arrives exactly once; what a cap has dropped is missing, and
        `message.gap` says how much. `on_interrupted` is called with the problem, once for each
        interruption, if that takes longer than a second. After `give_up_after` seconds without the
        server it raises OutputInterrupted. A server that was never reached is an error at once,
        unless it has been `reached` by another call, or the client is `connected`. Leave it early
        with ``aclosing``: that ends the call.
        """
        progress = OutputProgress(
            job_id,
            tail=tail,
            offset=offset,
            last_bytes=last_bytes,
            last_lines=last_lines,
            stream=stream,
            give_up_after=give_up_after,
            # A crowd's connection may still wait to be made again when the client's own is there.
            reached=reached or self.connected,
        )
        while not progress.finished:
            failure: grpc.RpcError | None = None
            try:
                with self._outputs.open(progress.request(time.monotonic())) as call:
                    async for message in call:
                        if (news := progress.accept(message)) is not None:
                            yield news
            except grpc.aio.AioRpcError as error:
                failure = error
            if not progress.finished:
                now = time.monotonic()
                delay = progress.lost(now, failure)
                if progress.must_notify(now):
                    on_interrupted(problem_of(failure))
                # Its traceback holds this frame, and the frame would hold it.
                del failure
                await asyncio.sleep(delay)
