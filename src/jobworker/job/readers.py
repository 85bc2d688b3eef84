"""Which jobs' outputs are being read now, so that retention leaves those alone."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.job.stream import OutputStream


class Readers:
    """The open streams of a Service. One that nobody holds any more is no reader, even unclosed.

    `on_left(job_id)` is called when a stream has come to its end.
    """

    def __init__(self, on_left: Callable[[str], None] = lambda _job_id: None) -> None:
        self._on_left = on_left
        self._streams: WeakSet[OutputStream] = WeakSet()

    def add(self, stream: OutputStream) -> None:
        """Take in a stream that has been opened."""
        self._streams.add(stream)

    def discard(self, stream: OutputStream) -> None:
        """Let go of a stream that has come to its end; twice is fine."""
        if stream in self._streams:
            self._streams.discard(stream)
            self._on_left(stream.job_id)

    def job_ids(self) -> frozenset[str]:
        """Return the ids of the jobs that are being read."""
        return frozenset(stream.job_id for stream in self._streams)
