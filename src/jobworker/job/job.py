"""One job: what is known of it now, its end, and its output."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from jobworker.errors import FailedPrecondition, JobNotFound, JobWorkerError, ShuttingDown
from jobworker.job import stats
from jobworker.job.freezer import is_frozen
from jobworker.job.readers import Readers
from jobworker.job.state import State
from jobworker.job.stream import OutputStream, final_size
from jobworker.output import (
    Stream,
    find_beginning,
    follow,
    no_header,
    open_for_reading,
    read_to,
    size,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from jobworker.cgroups import Cgroup
    from jobworker.job.record import JobRecord
    from jobworker.job.spec import JobSpec
    from jobworker.job.state import JobStatus
    from jobworker.job.stats import Sample
    from jobworker.output import Follower, Header, Watcher


class Job:
    """A job of a Service.

    `record` is replaced as a whole when something happens, so it may be read from any thread and is
    always consistent; everything that waits belongs to the Service's event loop.
    """

    def __init__(
        self,
        record: JobRecord,
        *,
        log_dir: Path,
        watcher: Watcher,
        cgroup: Cgroup,
        readers: Readers | None = None,
    ) -> None:
        self._record = record
        self._log_dir = log_dir
        self._watcher = watcher
        self._cgroup = cgroup
        self._readers = Readers() if readers is None else readers
        # None until somebody waits: there may be thousands of jobs, and it takes half a kilobyte.
        self._settled: asyncio.Event | None = None
        self._forgotten = False
        self._left = False

    @property
    def id(self) -> str:
        """The job's UUID."""
        return self._record.id

    @property
    def log_dir(self) -> Path:
        """Where its directory is."""
        return self._log_dir

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

    @property
    def paused(self) -> bool:
        """Whether the kernel keeps all processes of the job frozen now, on whoever's behalf.

        Raises FailedPrecondition if the kernel cannot be asked, or ResourceExhausted.
        """
        try:
            return self.status.state is State.RUNNING and is_frozen(self._cgroup)
        except (OSError, ValueError) as error:
            raise stats.unreadable(f"tell whether job {self.id} is paused", error) from error

    def publish(self, record: JobRecord) -> None:
        """Replace what is known; for the Service that owns the job."""
        self._record = record
        if record.finished:
            self._settle()
            self._wake()

    def _settle(self) -> None:
        if self._settled is not None:
            self._settled.set()

    def _wake(self) -> None:
        for stream in Stream:
            self._watcher.wake(_watched(self.id, stream))

    def forget(self) -> None:
        """Tell all who wait that the job did not start after all; for the Service."""
        self._forgotten = True
        self._settle()
        self._wake()

    def leave(self) -> None:
        """Tell all who wait for the end that it will not be known here; for the Service."""
        self._left = True
        self._settle()

    async def wait(self) -> JobStatus:
        """Return the final status once the job has finished.

        Raises JobNotFound if it turns out that it has never been started, and ShuttingDown when the
        Service is being left.
        """
        if not (self.finished or self._forgotten or self._left):
            if self._settled is None:
                self._settled = asyncio.Event()
            await self._settled.wait()
        self._check_known()
        if self._left and not self.finished:
            raise ShuttingDown(f"cannot wait for job {self.id}: the server is shutting down")
        return self.status

    def _check_known(self) -> None:
        if self._forgotten:
            raise JobNotFound(self.id)

    def _final_size(self, stream: Stream) -> int | None:
        self._check_known()
        return final_size(self._record, stream)

    async def sample(self) -> Sample:
        """Return what the job uses now, or has used if it has ended.

        Raises FailedPrecondition if the kernel's figures cannot be read, or ResourceExhausted.
        """
        return await stats.sample(self, self._cgroup)

    def stream_samples(
        self, interval: float = stats.DEFAULT_INTERVAL
    ) -> AsyncGenerator[Sample, None]:
        """Yield a sample now and every `interval` seconds; the last one is that of the job's end.

        Raises InvalidArgument, and what `sample` raises.
        """
        stats.check_interval(interval)
        return stats.samples(self, self._cgroup, interval)

    def output_size(self) -> int | None:
        """Return how many bytes of output there are, or None if the output is gone.

        Once the job has finished, this is the final size, whatever became of the file.
        """
        return self.size_of(Stream.STDOUT)

    def stderr_size(self) -> int | None:
        """Return the same of standard error; None also if it is not kept apart."""
        return self.size_of(Stream.STDERR) if self.spec.split_stderr else None

    def size_of(self, stream: Stream) -> int | None:
        """Return the same of either."""
        if self.finished:
            return final_size(self._record, stream)
        try:
            return size(self._log_dir, self.id, stream)
        except JobWorkerError:
            return None

    async def output(self, offset: int = 0) -> bytes:
        """Return the output there is now, from `offset` on. See `stream_output` for errors."""
        with self.stream_output(offset, tail=False) as chunks:
            return b"".join([chunk.data async for chunk in chunks])

    async def beginning(
        self,
        *,
        last_bytes: int | None = None,
        last_lines: int | None = None,
        stream: Stream = Stream.STDOUT,
    ) -> int:
        """Return the offset at which the last bytes, or lines, of the output there is now begin.

        A last line without a newline counts. What a cap has dropped is not looked at: that far at
        most goes the beginning. Raises what `stream_output` raises.
        """
        fd = self._open(stream)
        try:
            return await find_beginning(
                fd,
                size=final_size(self._record, stream),
                cap=self._record.output_max_bytes,
                last_bytes=last_bytes,
                last_lines=last_lines,
            )
        finally:
            os.close(fd)

    def stream_output(
        self,
        offset: int = 0,
        *,
        tail: bool = True,
        stream: Stream = Stream.STDOUT,
        header: Header = no_header,
    ) -> OutputStream:
        """Return the output from byte `offset` on, as an async iterator of chunks.

        Any number of readers may do so at any time, each at its own pace. With `tail` it goes on
        until the job has finished and every byte was read; without, it ends with what is there
        now. What a cap has dropped is left out, which shows in the offsets of the chunks. Close it
        (``with``) if it may be left early. With a `header` each chunk begins with that.

        Raises FailedPrecondition if the output is gone or `stream` is not kept apart,
        ResourceExhausted if there is no descriptor left, and ShuttingDown when the Service is being
        left.
        """
        follower = self._follow(offset, stream, tail=tail, header=header)
        return OutputStream(self, follower, stream, offset=offset, tail=tail, readers=self._readers)

    def _open(self, stream: Stream) -> int:
        if stream is Stream.STDERR and not self.spec.split_stderr:
            raise FailedPrecondition(
                f"cannot read the standard error of job {self.id} alone: it is in the output; a "
                "job that is started with split_stderr (--split-stderr) keeps it apart"
            )
        return open_for_reading(self._log_dir, self.id, stream)

    def _follow(self, offset: int, stream: Stream, *, tail: bool, header: Header) -> Follower:
        cap = self._record.output_max_bytes
        fd = self._open(stream)
        if self.finished or not tail:
            size = final_size(self._record, stream)
            return read_to(fd, offset=offset, size=size, cap=cap, header=header)
        try:
            watch = self._watcher.watch(_watched(self.id, stream), fd)
        except BaseException:
            os.close(fd)
            raise
        return follow(
            fd,
            offset=offset,
            final_size=lambda: self._final_size(stream),
            watch=watch,
            cap=cap,
            header=header,
        )


def _watched(job_id: str, stream: Stream) -> str:
    """Return by what name the watcher knows one of a job's outputs."""
    return job_id if stream is Stream.STDOUT else f"{job_id} ({stream.value})"
