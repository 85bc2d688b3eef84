"""The gRPC servicer: requests to calls of `job.Service`, and their results to responses."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from jobworker import steps
from jobworker.errors import InvalidArgument
from jobworker.job.stats import DEFAULT_INTERVAL
from jobworker.output import Stream
from jobworker.rpc import convert, frames
from jobworker.rpc.guard import caller
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.v1 import jobworker_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobworker import job

AT_A_TIME: Final = 50
"""How many jobs become messages before others have their turn; each takes some 50 µs."""

_STREAMS: Final = {
    pb.OUTPUT_STREAM_UNSPECIFIED: Stream.STDOUT,
    pb.OUTPUT_STREAM_STDOUT: Stream.STDOUT,
    pb.OUTPUT_STREAM_STDERR: Stream.STDERR,
}


class JobWorker(pb_grpc.JobWorkerServiceServicer):
    """The service of the wire contract. Who may call what has been decided before (`Guard`)."""

    def __init__(self, jobs: job.Service) -> None:
        self._jobs = jobs

    async def Start(self, request: pb.StartRequest, _context: Any) -> pb.StartResponse:  # noqa: N802
        """Start a job."""
        spec = convert.job_spec(request)
        started = await self._jobs.start_job(spec, owner=caller().common_name)
        steps.reached("server.start.answering")
        return pb.StartResponse(
            job_id=started.id,
            command=convert.command_message(started.spec),
            status=convert.status_detail(started.status),
            limits=convert.limits_message(started.record.limits),
            warnings=started.record.warnings,
        )

    async def Stop(self, request: pb.StopRequest, _context: Any) -> pb.StopResponse:  # noqa: N802
        """Stop a job and answer once it has ended."""
        grace = convert.seconds(request.grace) if request.HasField("grace") else None
        await self._jobs.stop_job(
            request.job_id,
            grace=grace,
            signal=request.signal or None,
            user=caller().common_name,
        )
        steps.reached("server.stop.answering")
        return pb.StopResponse()

    async def Wait(self, request: pb.WaitRequest, _context: Any) -> pb.WaitResponse:  # noqa: N802
        """Answer once a job has ended, or its caller's time has passed."""
        timeout = convert.seconds(request.timeout) if request.HasField("timeout") else None
        status = await self._jobs.wait_job(request.job_id, timeout)
        return pb.WaitResponse(status=convert.status_detail(status))

    async def Signal(self, request: pb.SignalRequest, _context: Any) -> pb.SignalResponse:  # noqa: N802
        """Send a signal to a job."""
        await self._jobs.signal_job(
            request.job_id,
            request.signal,
            all_processes=request.all,
            user=caller().common_name,
        )
        return pb.SignalResponse()

    async def Status(self, request: pb.StatusRequest, _context: Any) -> pb.StatusResponse:  # noqa: N802
        """Tell what is known of a job."""
        found = await self._jobs.fetch_job(request.job_id)
        record = found.record
        message = convert.job_message(
            record, found.output_size(), stderr_size=found.stderr_size(), paused=found.paused
        )
        return pb.StatusResponse(status=message.status, job=message)

    async def List(self, request: pb.ListRequest, _context: Any) -> pb.ListResponse:  # noqa: N802
        """Tell of jobs, a page at a time."""
        page = await self._jobs.list_jobs(
            convert.job_filter(request),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        response = pb.ListResponse(next_page_token=page.next_page_token)
        for index, entry in enumerate(page.entries):
            if index % AT_A_TIME == AT_A_TIME - 1:
                await asyncio.sleep(0)  # A thousand jobs must not keep the others waiting.
            message = convert.job_message(
                entry.record,
                entry.output_size,
                stderr_size=entry.stderr_size,
                paused=entry.paused,
            )
            response.jobs.append(message)
        return response

    async def Output(  # noqa: N802
        self, request: pb.OutputRequest, _context: Any
    ) -> AsyncIterator[Any]:
        """Stream a job's output, as frames (see `frames`), and close the stream with `end`."""
        last = convert.last_of_output(request)
        found = await self._jobs.fetch_job(request.job_id)
        wanted = _stream(request.stream)
        offset = request.offset
        if last:
            offset = await found.beginning(**last, stream=wanted)
            # Without output it says where the stream begins: a client that loses it before the
            # first byte comes must not ask for the last lines of another moment.
            yield frames.header(offset, 0)
        with found.stream_output(
            offset, tail=request.tail, stream=wanted, header=frames.header
        ) as stream:
            async for chunk in stream:
                yield chunk.data
            end = stream.end()
        message = pb.OutputEnd(status=convert.status_detail(end.status), size=end.size)
        yield pb.OutputResponse(offset=end.offset, end=message)

    async def UpdateLimits(  # noqa: N802
        self, request: pb.UpdateLimitsRequest, _context: Any
    ) -> pb.UpdateLimitsResponse:
        """Change limits of a running job."""
        changed = await self._jobs.update_limits(
            request.job_id, convert.limits(request.limits), user=caller().common_name
        )
        record = changed.record
        return pb.UpdateLimitsResponse(
            limits=convert.limits_message(record.limits), warnings=record.warnings
        )

    async def Pause(self, request: pb.PauseRequest, _context: Any) -> pb.PauseResponse:  # noqa: N802
        """Pause a job and answer once it is frozen."""
        await self._jobs.pause_job(request.job_id, user=caller().common_name)
        return pb.PauseResponse()

    async def Resume(self, request: pb.ResumeRequest, _context: Any) -> pb.ResumeResponse:  # noqa: N802
        """Let a paused job go on."""
        await self._jobs.resume_job(request.job_id, user=caller().common_name)
        return pb.ResumeResponse()

    async def Watch(  # noqa: N802
        self, request: pb.WatchRequest, _context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        """Stream what happens to jobs."""
        events = self._jobs.watch(request.resume_token, job_id=request.job_id, owner=request.owner)
        async with aclosing(events):
            async for told in events:
                yield convert.watch_message(told)

    async def Remove(self, request: pb.RemoveRequest, _context: Any) -> pb.RemoveResponse:  # noqa: N802
        """Remove a finished job and its output."""
        await self._jobs.remove_job(request.job_id, user=caller().common_name)
        steps.reached("server.remove.answering")
        return pb.RemoveResponse()

    async def Stats(  # noqa: N802
        self, request: pb.StatsRequest, _context: Any
    ) -> AsyncIterator[pb.StatsResponse]:
        """Stream samples of what a job uses, or send one."""
        found = await self._jobs.fetch_job(request.job_id)
        interval = DEFAULT_INTERVAL
        if request.HasField("interval"):
            interval = convert.seconds(request.interval)
        async with aclosing(found.stream_samples(interval)) as samples:
            async for sample in samples:
                yield convert.sample_message(sample)
                if not request.follow:
                    return


def _stream(wanted: pb.OutputStream.ValueType) -> Stream:
    try:
        return _STREAMS[wanted]
    except KeyError:
        raise InvalidArgument(
            "stream", f"{wanted} is none; there are OUTPUT_STREAM_STDOUT and OUTPUT_STREAM_STDERR"
        ) from None
