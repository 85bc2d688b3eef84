"""What every call passes through: TLS version, identity, role, audit line, errors to statuses.

An interceptor wraps the handler of each method, the health and reflection services' included, so
that no method can be added without passing here.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import grpc
from google.protobuf.message import DecodeError

from jobworker.auth import tls
from jobworker.auth.identity import Identity
from jobworker.errors import InvalidArgument, JobWorkerError, ShuttingDown
from jobworker.rpc.errors import ERROR_NAME, status_code
from jobworker.rpc.streams import MAX_STREAMS_PER_USER, StreamPlaces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from jobworker.auth.audit import Audit
    from jobworker.auth.policy import Policy

    Handler = grpc.RpcMethodHandler[Any, Any]

log = logging.getLogger(__name__)

_caller: ContextVar[Identity] = ContextVar("caller")

_WAITING: Final = frozenset({"/jobworker.v1.JobWorkerService/Wait"})
"""Methods with a single answer that comes when something else has happened."""

_LOOK: Final = 0.01
"""Seconds between two looks whether calls still come."""
_QUIET_LOOKS: Final = 5
"""After so many looks in a row at which none has come, none is waiting. One look would not do: a
busy event loop may spend that time in a single turn, in which no call can come."""

_MAX_DETAILS: Final = 6000
"""Bytes as they are encoded; gRPC's default bound for all metadata is 8 KiB."""

_KINDS: Final[Mapping[tuple[bool, bool], tuple[str, Callable[..., Handler]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""Whether requests and responses are streams → the handler's attribute, and what makes one."""


def caller() -> Identity:
    """Return who makes the current call."""
    return _caller.get()


class Guard(grpc.aio.ServerInterceptor):
    """Lets calls in by the policy, and ends those that run when the server shuts down.

    A user may have `max_streams_per_user` streams open at a time.
    """

    def __init__(
        self,
        policy: Policy,
        audit: Audit,
        *,
        max_streams_per_user: int | None = MAX_STREAMS_PER_USER,
    ) -> None:
        self._places = StreamPlaces(max_streams_per_user)
        self._policy = policy
        self._audit = audit
        self._streams: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._sending: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._arrived = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, wrapped; None for a method that there is not."""
        self._arrived += 1
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        return self._wrap(handler, handler_call_details.method)

    def _wrap(self, handler: Any, method: str) -> Handler:
        kind, make = _KINDS[handler.request_streaming, handler.response_streaming]
        wrap = self._stream if handler.response_streaming else self._unary
        # A single request is read behind the guard, like everything that a stranger may send.
        parse = None if handler.request_streaming else handler.request_deserializer
        return make(
            wrap(getattr(handler, kind), method, parse or _as_it_is),
            request_deserializer=None if parse else handler.request_deserializer,
            response_serializer=_unless_bytes(handler.response_serializer),
        )

    def _unary(
        self, behaviour: Callable[..., Any], method: str, parse: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        # What waits for something else to happen is ended like a stream: at once.
        running = self._streams if method in _WAITING else self._calls

        async def call(request: Any, context: Any) -> Any:
            async with self._admitted(method, context, running):
                return await behaviour(_parsed(request, parse), context)

        return call

    def _stream(
        self, behaviour: Callable[..., Any], method: str, parse: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> None:
            async with self._admitted(method, context, self._streams):
                with self._places.taken(caller().common_name):
                    await self._run(behaviour(_parsed(request, parse), context), context)

        return call

    async def _run(self, result: Any, context: Any) -> None:
        """Run a handler to its end: a generator, or a coroutine that writes to the context itself.

        Those are the two kinds of streaming handlers that grpc.aio knows.
        """
        if not hasattr(result, "__aiter__"):
            await result
            return
        async with aclosing(result):
            async for message in result:
                await self._send(context, message)

    async def _send(self, context: Any, message: Any) -> None:
        task = _current_task()
        self._sending.add(task)
        await context.write(message)
        self._sending.discard(task)
        if self._closing:
            raise _shutting_down()

    @asynccontextmanager
    async def _admitted(
        self, method: str, context: Any, running: set[asyncio.Task[Any]]
    ) -> AsyncIterator[None]:
        task = _current_task()
        running.add(task)
        try:
            self._authorize(method, context)
            yield
        except JobWorkerError as error:
            if status_code(error) is grpc.StatusCode.INTERNAL:
                log.exception("a call of %s failed", method)
            name = ((ERROR_NAME, type(error).__name__),)
            await context.abort(status_code(error), _shortened(str(error)), name)
        except asyncio.CancelledError:
            if not self._closing or task in self._sending:
                raise
            closed = _shutting_down()
            await context.abort(status_code(closed), str(closed))
        except grpc.aio.AbortError:
            raise
        except Exception:
            log.exception("a call of %s failed unexpectedly", method)
            await context.abort(
                grpc.StatusCode.INTERNAL, "internal error; the server's log has the details"
            )
        finally:
            running.discard(task)
            self._sending.discard(task)

    def _authorize(self, method: str, context: Any) -> None:
        user = ""
        try:
            if self._closing:
                raise _shutting_down()
            security = context.auth_context()
            tls.require_tls13(security)
            identity = Identity.from_pem(tls.peer_certificate(security))
            user = identity.common_name
            self._policy.authorize(identity, method)
        except JobWorkerError as error:
            self._audit.decision(
                allowed=False, method=method, user=user, peer=_peer(context), why=str(error)
            )
            raise
        self._audit.decision(allowed=True, method=method, user=user, peer=_peer(context))
        _caller.set(identity)

    async def turn_away(self, patience: float) -> None:
        """Refuse all calls from now on; return once no more come, after `patience` seconds at most.

        A server of gRPC that is stopped cancels the calls that it has received and not handed out
        yet, which tells a client nothing. So they have to be out before. How many there are it does
        not tell, but it hands them out one after the other.
        """
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                quiet = 0
                while quiet < _QUIET_LOOKS:
                    before = self._arrived
                    await asyncio.sleep(_LOOK)
                    quiet = quiet + 1 if self._arrived == before else 0

    async def close(self, patience: float) -> None:
        """End the streams at once, and the other calls after `patience` seconds at the latest.

        A stream whose message is on its way ends after it: gRPC takes no status for a call while
        a write of it is pending. A client that does not read is cut off without one.
        """
        self._closing = True
        for task in self._streams - self._sending:
            task.cancel()
        if running := self._calls | self._streams:
            await asyncio.wait(running, timeout=patience)
        if left := self._calls | self._streams:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=patience)


def _as_it_is(request: Any) -> Any:
    return request


def _unless_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Let what is bytes already through: it was encoded by who made it (`frames`)."""

    def serialize_or_pass(message: Any) -> bytes:
        return message if type(message) is bytes else serialize(message)

    return serialize_or_pass


def _parsed(request: Any, parse: Callable[[Any], Any]) -> Any:
    """Read a request. Raises InvalidArgument if it is not a message of the contract."""
    try:
        return parse(request)
    except DecodeError as error:
        raise InvalidArgument("request", f"is not a message of this method: {error}") from None


def _peer(context: Any) -> str:
    """Return the address of the other side as people write it, for example ``[::1]:38022``."""
    return unquote(context.peer()).partition(":")[2]


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    return task


def _shortened(details: str) -> str:
    """Cut what would not fit into the trailing metadata: a client would get no status at all."""
    text = details
    # On the wire, all but printable ASCII is percent-encoded, byte by byte.
    while len(quote(text)) > _MAX_DETAILS:
        text = text[: len(text) // 2]
    return text if text == details else f"{text}…"


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the server is shutting down; jobs go on running")
