"""One job: what is known of it now, its end, and its output."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobworker import output
from jobworker.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jobworker.job.record import JobRecord
    from jobworker.job.spec import JobSpec
    from jobworker.job.state import JobStatus


class Job:
    """A job of a Service.

    `record` is replaced as a whole when something happens, so it may be read from any thread and is
    always consistent; everything that waits belongs to the Service's event loop.
    """

    def __init__(self, record: JobRecord, log_dir: Path, watcher: output.Watcher) -> None:
        self._record = record
        self._log_dir = log_dir
        self._watcher = watcher
        self._finished = asyncio.Event()
        if record.finished:
            self._finished.set()

    @property
    def id(self) -> str:
        """The job's UUID."""
        return self._record.id

    @property
    def record(self) -> JobRecord:
        """Everything that is known of the job at this moment."""
        return self._record

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        return self._record.spec

    @property
    def status(self) -> JobStatus:
        """The job's state and, once it has finished, how it ended."""
        return self._record.status

    @property
    def finished(self) -> bool:
        """Whether the job has ended: nothing about it, its output included, will change."""
        return self._record.finished

    def publish(self, record: JobRecord) -> None:
        """Replace what is known; for the Service that owns the job."""
        self._record = record
        if record.finished:
            self._finished.set()
            self._watcher.wake(self.id)

    async def wait(self) -> JobStatus:
        """Return the final status once the job has finished."""
        await self._finished.wait()
        return self.status

    def output_size(self) -> int:
        """Return how many bytes of output there are: all of them, once the job has finished."""
        if self._record.output_size is not None:
            return self._record.output_size
        return output.size(self._log_dir, self.id)

    async def output(self, offset: int = 0) -> bytes:
        """Return the output there is, from `offset` on. See `stream_output` for errors."""
        chunks = [chunk.data async for chunk in self.stream_output(offset, tail=False)]
        return b"".join(chunks)

    async def stream_output(
        self, offset: int = 0, *, tail: bool = True
    ) -> AsyncIterator[output.Chunk]:
        """Yield the output from byte `offset` on; any number of readers may do so at any time.

        With `tail` this goes on until the job has finished and every byte was yielded; without, it
        ends with what is there now. Raises FailedPrecondition if the output is gone.
        """
        ...
