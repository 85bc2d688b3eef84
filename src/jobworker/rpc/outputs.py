"""A client's Output streams: a few that may send much ahead of their readers, others that may not.

How much that is, is a setting of a connection, not of a stream: so the others have their own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from jobworker.rpc import channel, frames
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    import grpc
    from google.protobuf.message import Message

    Call: TypeAlias = grpc.aio.UnaryStreamCall[Message, frames.OutputMessage]

_OUTPUT: Final = f"/{pb.DESCRIPTOR.package}.JobWorkerService/Output"


class Outputs:
    """Opens Output streams over `connection`, and over another one that `connect(ahead)` makes.

    `ahead` is how many bytes each stream of that connection may send ahead of its reader.
    """

    def __init__(
        self, connection: grpc.aio.Channel, connect: Callable[[int], grpc.aio.Channel]
    ) -> None:
        self._wide = connection
        self._connect = connect
        self._narrow: grpc.aio.Channel | None = None
        self._wide_open = 0
        self._closed = False

    @contextmanager
    def open(self, request: pb.OutputRequest) -> Iterator[Call]:
        """Open a stream; the call is cancelled at the end."""
        wide = self._wide_open < channel.WIDE_STREAMS
        connection = self._wide if wide else self._narrow_connection()
        call: Call = connection.unary_stream(
            _OUTPUT,
            request_serializer=pb.OutputRequest.SerializeToString,
            response_deserializer=frames.decode,
        )(request)
        self._wide_open += wide
        try:
            yield call
        finally:
            self._wide_open -= wide
            call.cancel()

    async def close(self) -> None:
        """Close the connection that was made here; none is made any more, were it never needed."""
        self._closed = True
        if self._narrow is not None:
            await self._narrow.close()

    def _narrow_connection(self) -> grpc.aio.Channel:
        if self._narrow is None:
            if self._closed:
                return self._wide  # It is closed as well, and says so.
            self._narrow = self._connect(channel.NARROW)
        return self._narrow
