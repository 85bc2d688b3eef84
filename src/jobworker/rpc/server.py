"""The gRPC servicer: requests to calls of `job.Service`, and their results to responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobworker.rpc import convert
from jobworker.rpc.guard import caller
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.v1 import jobworker_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobworker import job


class JobWorker(pb_grpc.JobWorkerServiceServicer):
    """The service of the wire contract. Who may call what has been decided before (`Guard`)."""

    def __init__(self, jobs: job.Service) -> None:
        self._jobs = jobs

    async def Start(self, request: pb.StartRequest, _context: Any) -> pb.StartResponse:  # noqa: N802
        """Start a job."""
        spec = convert.job_spec(request)
        started = await self._jobs.start_job(spec, owner=caller().common_name)
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
        await self._jobs.stop_job(request.job_id, grace=grace, user=caller().common_name)
        return pb.StopResponse()

    async def Status(self, request: pb.StatusRequest, _context: Any) -> pb.StatusResponse:  # noqa: N802
        """Tell what is known of a job."""
        found = await self._jobs.fetch_job(request.job_id)
        record = found.record
        message = convert.job_message(record, found.output_size())
        return pb.StatusResponse(status=message.status, job=message)

    async def Output(  # noqa: N802
        self, request: pb.OutputRequest, _context: Any
    ) -> AsyncIterator[pb.OutputResponse]:
        """Stream a job's output, and close the stream with `end`."""
        found = await self._jobs.fetch_job(request.job_id)
        with found.stream_output(request.offset, tail=request.tail) as stream:
            async for chunk in stream:
                yield pb.OutputResponse(output=chunk.data, offset=chunk.offset)
            end = stream.end()
        message = pb.OutputEnd(status=convert.status_detail(end.status), size=end.size)
        yield pb.OutputResponse(offset=end.offset, end=message)
