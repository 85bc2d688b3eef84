"""A stand-in for the service: the wire contract over jobs that are only scripts."""

from __future__ import annotations

import asyncio
import signal
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from jobworker.rpc.errors import ERROR_NAME
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.v1 import jobworker_pb2_grpc as pb_grpc
from jobworker.testing.events import ScriptedEvents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

USER = "user_alpha"
"""Who owns all jobs, and asks for everything."""

RUNNING = pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1)
EXITED = pb.StatusDetail(status=pb.STATUS_EXITED, exit_code=0, reason=pb.REASON_EXITED)
STOPPED = pb.StatusDetail(
    status=pb.STATUS_STOPPED, exit_code=-1, signal=15, reason=pb.REASON_STOPPED
)


@dataclass
class ScriptedJob:
    """A job that writes, is sampled and ends when the test says so.

    `dropped` is how many bytes of each stream a cap has dropped.
    """

    job: pb.Job
    output: bytes = b""
    stderr: bytes = b""
    dropped: int = 0
    samples: list[pb.StatsResponse] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    on_end: Callable[[], None] = lambda: None

    @property
    def finished(self) -> bool:
        """Whether the job has ended."""
        return self.job.status.status not in (pb.STATUS_PENDING, pb.STATUS_RUNNING)

    def split(self, stderr: bytes = b"") -> None:
        """Keep standard error apart, and write it."""
        self.job.split_stderr = True
        self.stderr = stderr
        self.job.stderr_size = len(stderr)

    def written(self, stream: pb.OutputStream.ValueType) -> bytes:
        """Return what one of the streams has, with what is dropped."""
        return self.stderr if stream == pb.OUTPUT_STREAM_STDERR else self.output

    async def write(self, data: bytes) -> None:
        """Append to the output, and wake its followers."""
        async with self.changed:
            self.output += data
            self.job.output_size = len(self.output)
            self.changed.notify_all()

    async def end(self, status: pb.StatusDetail = EXITED) -> None:
        """End the job, and with it the streams of its followers."""
        async with self.changed:
            self.job.status.CopyFrom(status)
            self.changed.notify_all()
        self.on_end()


@dataclass(frozen=True)
class Refusal:
    """A status that a call ends with, after as many messages of a stream as `after` says."""

    code: grpc.StatusCode
    details: str
    after: int = 0
    error: str = ""
    """The name of the domain error, as the service sends it along."""


class ScriptedService(pb_grpc.JobWorkerServiceServicer):
    """Answers as the service does, from `jobs`.

    Started jobs run until they are stopped. A `refusals` entry (by method) makes the next calls
    fail, one each. `rewrite` may alter every message of an Output stream before it is sent;
    `requests` is what was asked, in order. `chunk` is how many bytes a message carries,
    and `page` how many jobs a page has at most.
    """

    def __init__(self, *, chunk: int = 1024 * 1024) -> None:
        self.jobs: dict[str, ScriptedJob] = {}
        self.events = ScriptedEvents()
        self.requests: list[Any] = []
        self.refusals: dict[str, list[Refusal]] = {}
        self.warnings: list[str] = []
        self.rewrite: Callable[[pb.OutputResponse], pb.OutputResponse] = lambda message: message
        self.chunk = chunk
        self.page = 1000
        self.followers = 0
        self._followers_changed = asyncio.Event()
        self._started: dict[str, pb.Job] = {}

    def add(self, output: bytes = b"", status: pb.StatusDetail = EXITED) -> ScriptedJob:
        """Put a job there, finished unless `status` says otherwise."""
        job = pb.Job(id=str(uuid.uuid4()), status=status, owner=USER)
        job.command.name = "true"
        job.output_size = len(output)
        self.jobs[job.id] = ScriptedJob(
            job, output, on_end=lambda: self.events.tell(pb.EVENT_TYPE_ENDED, job)
        )
        return self.jobs[job.id]

    async def Start(self, request: pb.StartRequest, context: Any) -> pb.StartResponse:  # noqa: N802
        """Start a job, or find the one that the request's id has started."""
        await self._asked("Start", request, context)
        job = self._started.get(request.request_id)
        if job is None:
            job = self.add(status=RUNNING).job
            job.command.CopyFrom(request.command)
            job.limits.CopyFrom(request.limits)
            if request.split_stderr:
                self.jobs[job.id].split()
            job.name = request.name
            self.events.tell(pb.EVENT_TYPE_STARTED, job, USER)
        if request.request_id:
            self._started[request.request_id] = job
        return pb.StartResponse(
            job_id=job.id,
            command=job.command,
            status=job.status,
            limits=job.limits,
            warnings=self.warnings,
        )

    async def Stop(self, request: pb.StopRequest, context: Any) -> pb.StopResponse:  # noqa: N802
        """Stop a job; nothing happens to one that has ended."""
        await self._asked("Stop", request, context)
        job = await self._job(request.job_id, context)
        if not job.finished:
            end = pb.StatusDetail()
            end.CopyFrom(STOPPED)
            end.signal = request.signal or STOPPED.signal
            self.events.tell(pb.EVENT_TYPE_STOPPING, job.job, USER, signal=end.signal)
            await job.end(end)
        return pb.StopResponse()

    async def Wait(self, request: pb.WaitRequest, context: Any) -> pb.WaitResponse:  # noqa: N802
        """Answer when a job has ended, or when the time has passed."""
        await self._asked("Wait", request, context)
        job = await self._job(request.job_id, context)
        timeout = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None
        try:
            async with asyncio.timeout(timeout), job.changed:
                while not job.finished:
                    await job.changed.wait()
        except TimeoutError:
            pass
        return pb.WaitResponse(status=job.job.status)

    async def Signal(self, request: pb.SignalRequest, context: Any) -> pb.SignalResponse:  # noqa: N802
        """Send a signal to a job that runs: SIGKILL ends it, and it ignores all others."""
        await self._asked("Signal", request, context)
        job = await self._running_job(request.job_id, context)
        self.events.tell(pb.EVENT_TYPE_SIGNALED, job.job, USER, signal=request.signal)
        if request.signal == signal.SIGKILL:
            await job.end(
                pb.StatusDetail(
                    status=pb.STATUS_EXITED,
                    exit_code=-1,
                    signal=signal.SIGKILL,
                    reason=pb.REASON_SIGNALED,
                )
            )
        return pb.SignalResponse()

    async def Remove(self, request: pb.RemoveRequest, context: Any) -> pb.RemoveResponse:  # noqa: N802
        """Remove a job that has ended."""
        await self._asked("Remove", request, context)
        job = await self._job(request.job_id, context)
        if not job.finished:
            state = pb.Status.Name(job.job.status.status).removeprefix("STATUS_").lower()
            await _refuse(
                Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"cannot remove job {request.job_id}: it is {state}; stop it first: "
                    f"jobworker-cli stop {request.job_id}",
                ),
                context,
            )
        del self.jobs[request.job_id]
        self.events.tell(pb.EVENT_TYPE_REMOVED, job.job, USER)
        return pb.RemoveResponse()

    async def UpdateLimits(  # noqa: N802
        self, request: pb.UpdateLimitsRequest, context: Any
    ) -> pb.UpdateLimitsResponse:
        """Change the limits of a job that runs."""
        await self._asked("UpdateLimits", request, context)
        job = await self._running_job(request.job_id, context)
        job.job.limits.MergeFrom(request.limits)
        self.events.tell(pb.EVENT_TYPE_LIMITS_UPDATED, job.job, USER)
        return pb.UpdateLimitsResponse(limits=job.job.limits, warnings=self.warnings)

    async def Pause(self, request: pb.PauseRequest, context: Any) -> pb.PauseResponse:  # noqa: N802
        """Pause a job that runs."""
        await self._asked("Pause", request, context)
        job = (await self._running_job(request.job_id, context)).job
        job.paused = True
        self.events.tell(pb.EVENT_TYPE_PAUSED, job, USER)
        return pb.PauseResponse()

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:  # noqa: N802
        """Let a job go on."""
        await self._asked("Resume", request, context)
        job = (await self._running_job(request.job_id, context)).job
        job.paused = False
        self.events.tell(pb.EVENT_TYPE_RESUMED, job, USER)
        return pb.ResumeResponse()

    async def Stats(  # noqa: N802
        self, request: pb.StatsRequest, context: Any
    ) -> AsyncIterator[pb.StatsResponse]:
        """Send the first of a job's `samples`, or with follow all of them, and then its end."""
        await self._asked("Stats", request, context)
        job = await self._job(request.job_id, context)
        if not job.finished:
            samples = job.samples if request.follow else job.samples[:1] or [pb.StatsResponse()]
            for sample in samples:
                sample.status.CopyFrom(job.job.status)
                yield sample
        async with job.changed:
            while request.follow and not job.finished:
                await job.changed.wait()
        if job.finished:
            yield pb.StatsResponse(status=job.job.status, usage=job.job.usage)

    async def Watch(  # noqa: N802
        self, request: pb.WatchRequest, context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        """Tell what happens to jobs."""
        refusal = await self._asked("Watch", request, context)
        if request.job_id and not request.resume_token:
            await self._job(request.job_id, context)
        sent = 0
        async with aclosing(self.events.watch(request)) as messages:
            async for message in messages:
                if refusal is not None and sent == refusal.after:
                    await _refuse(refusal, context)
                yield message
                sent += 1

    async def _running_job(self, job_id: str, context: Any) -> ScriptedJob:
        job = await self._job(job_id, context)
        if job.finished:
            await _refuse(
                Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"job {job_id} has ended"), context
            )
        return job

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        """Tell about a job."""
        await self._asked("Status", request, context)
        job = (await self._job(request.job_id, context)).job
        return pb.StatusResponse(status=job.status, job=job)

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:  # noqa: N802
        """Tell of jobs, the last added first; a page's token is how many came before."""
        await self._asked("List", request, context)
        matching = [job.job for job in reversed(self.jobs.values()) if _matches(job.job, request)]
        begin = int(request.page_token or 0)
        page = matching[begin:][: min(request.page_size or 100, self.page)]
        left = len(matching) - begin - len(page)
        return pb.ListResponse(jobs=page, next_page_token=str(begin + len(page)) if left else "")

    async def Output(  # noqa: N802
        self, request: pb.OutputRequest, context: Any
    ) -> AsyncIterator[pb.OutputResponse]:
        """Stream the output, in messages of at most `chunk` bytes, and the end."""
        refusal = await self._asked("Output", request, context)
        job = await self._job(request.job_id, context)
        if request.stream == pb.OUTPUT_STREAM_STDERR and not job.job.split_stderr:
            text = "its standard error is in the output (--split-stderr keeps it apart)"
            await _refuse(Refusal(grpc.StatusCode.FAILED_PRECONDITION, text), context)
        self._count(1)
        try:
            sent = 0
            async for message in self._messages(job, request):
                if refusal is not None and sent == refusal.after:
                    await _refuse(refusal, context)
                yield self.rewrite(message)
                sent += 1
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.followers += change
        self._followers_changed.set()
        self._followers_changed = asyncio.Event()

    async def wait_for_followers(self, count: int) -> None:
        """Return when `count` Output streams are open."""
        while self.followers != count:
            await self._followers_changed.wait()

    async def _messages(
        self, job: ScriptedJob, request: pb.OutputRequest
    ) -> AsyncIterator[pb.OutputResponse]:
        offset = request.offset
        if request.HasField("last_bytes") or request.HasField("last_lines"):
            offset = _beginning(job.written(request.stream), job.dropped, request)
            yield pb.OutputResponse(offset=offset)
        while True:
            finished = job.finished
            output = job.written(request.stream)
            offset = max(offset, min(job.dropped, len(output)))
            while offset < len(output):
                data = output[offset : offset + self.chunk]
                yield pb.OutputResponse(output=data, offset=offset)
                offset += len(data)
            if finished or not request.tail:
                break
            async with job.changed:
                while not (job.finished or offset < len(job.written(request.stream))):
                    await job.changed.wait()
        end = pb.OutputEnd(status=job.job.status, size=len(job.written(request.stream)))
        yield pb.OutputResponse(offset=offset, end=end)

    async def _asked(self, method: str, request: Any, context: Any) -> Refusal | None:
        self.requests.append(request)
        planned = self.refusals.get(method)
        refusal = planned.pop(0) if planned else None
        if refusal is not None and not refusal.after:
            await _refuse(refusal, context)
        return refusal

    async def _job(self, job_id: str, context: Any) -> ScriptedJob:
        if job_id not in self.jobs:
            await _refuse(
                Refusal(grpc.StatusCode.NOT_FOUND, f"no job has the id {job_id}"), context
            )
        return self.jobs[job_id]


def _beginning(output: bytes, dropped: int, request: pb.OutputRequest) -> int:
    """Return where the last bytes or lines of an output begin."""
    if request.HasField("last_bytes"):
        return max(dropped, len(output) - request.last_bytes)
    kept = output[dropped:]
    lines = kept.removesuffix(b"\n").split(b"\n") if kept else []
    before = lines[: max(0, len(lines) - request.last_lines)]
    return min(len(output), dropped + sum(len(line) + 1 for line in before))


def _matches(job: pb.Job, request: pb.ListRequest) -> bool:
    created = job.created_at.ToNanoseconds()
    after, before = request.created_after, request.created_before
    return (
        (not request.statuses or job.status.status in request.statuses)
        and request.owner in ("", job.owner)
        and request.name in ("", job.name)
        and all(job.labels.get(key) == value for key, value in request.labels.items())
        and (not request.HasField("created_after") or created >= after.ToNanoseconds())
        and (not request.HasField("created_before") or created < before.ToNanoseconds())
    )


async def _refuse(refusal: Refusal, context: Any) -> NoReturn:
    name = ((ERROR_NAME, refusal.error),) if refusal.error else ()
    await context.abort(refusal.code, refusal.details, name)
    raise AssertionError("abort raises")
