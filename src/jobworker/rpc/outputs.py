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
        self._open = 0

    @contextmanager
    def open(self, request: pb.OutputRequest) -> Iterator[Call]:
        """Open a stream; the call is cancelled at the end."""
        connection = self._wide if self._open < channel.WIDE_STREAMS else self._narrow_connection()
        call: Call = connection.unary_stream(
            _OUTPUT,
            request_serializer=pb.OutputRequest.SerializeToString,
            response_deserializer=frames.decode,
        )(request)
        self._open += 1
        try:
            yield call
        finally:
            self._open -= 1
            call.cancel()

    async def close(self) -> None:
        """Close the connection that was made here, if there is one."""
        if self._narrow is not None:
            await self._narrow.close()

    def _narrow_connection(self) -> grpc.aio.Channel:
        if self._narrow is None:
            self._narrow = self._connect(channel.NARROW)
        return self._narrow
