"""Which jobs' outputs are being read now, so that retention leaves those alone."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from jobworker.job.stream import OutputStream


class Readers:
    """The open streams of a Service. One that nobody holds any more is no reader, even unclosed."""

    def __init__(self) -> None:
        self._streams: WeakSet[OutputStream] = WeakSet()

    def add(self, stream: OutputStream) -> None:
        """Take in a stream that has been opened."""
        self._streams.add(stream)

    def discard(self, stream: OutputStream) -> None:
        """Let go of a stream that has come to its end; twice is fine."""
        self._streams.discard(stream)

    def job_ids(self) -> frozenset[str]:
        """Return the ids of the jobs that are being read."""
        return frozenset(stream.job_id for stream in self._streams)
