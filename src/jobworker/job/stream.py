"""A job's output as one reader gets it, and how that stream ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from jobworker.errors import FailedPrecondition
from jobworker.output import Stream

if TYPE_CHECKING:
    from types import TracebackType

    from jobworker.job.job import Job
    from jobworker.job.readers import Readers
    from jobworker.job.record import JobRecord
    from jobworker.job.state import JobStatus
    from jobworker.output import Chunk, Follower


@dataclass(frozen=True, slots=True)
class OutputEnd:
    """What is true at the end of a stream that stopped before byte `offset`.

    `size` is that of the output: final if the job has finished, else what the stream has seen.
    """

    status: JobStatus
    offset: int
    size: int


def final_size(record: JobRecord, stream: Stream) -> int | None:
    """Return the final size of one of a job's outputs in bytes, None before the job's end."""
    return record.output_size if stream is Stream.STDOUT else record.stderr_size


class OutputStream:
    """An async iterator of chunks; ``with`` closes it if it is left early."""

    def __init__(
        self,
        job: Job,
        follower: Follower,
        stream: Stream,
        *,
        offset: int,
        tail: bool,
        readers: Readers,
    ) -> None:
        self._job = job
        self._follower = follower
        self._stream = stream
        self._begun_at = offset
        self._tail = tail
        self._record = job.record
        self._readers = readers
        readers.add(self)

    @property
    def job_id(self) -> str:
        """The id of the job whose output this is."""
        return self._job.id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            return await anext(self._follower)
        except BaseException:
            self._readers.discard(self)  # The follower has closed its file.
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up reading. Closing twice is fine."""
        self._follower.close()
        self._readers.discard(self)

    def end(self) -> OutputEnd:
        """Return the end of the stream; only after its last chunk.

        Raises FailedPrecondition if bytes that the job had written are gone: somebody has cut the
        file after the job's end.
        """
        # Without tail the job may have ended since the stream began: the end speaks of the moment
        # it began, and promises no bytes that the stream did not bring.
        record = self._job.record if self._tail else self._record
        reached = self._follower.offset
        size = final_size(record, self._stream)
        if size is None:
            seen = min(reached, self._job.size_of(self._stream) or 0)
            return OutputEnd(record.status, reached, seen)
        if self._begun_at <= reached < size:
            raise FailedPrecondition(
                f"cannot read all output of job {record.id}: it was {size} bytes "
                f"long when the job ended, and only {reached} are there"
            )
        return OutputEnd(record.status, reached, size)
