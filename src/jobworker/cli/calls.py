"""Calls to the server: the connection that the flags describe, and failures as sentences."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

import click
import grpc

from jobworker.cli.context import Connection, resolve
from jobworker.cli.failure import explain
from jobworker.cli.session import Failure
from jobworker.errors import ConfigError
from jobworker.program import Interrupted
from jobworker.rpc.channel import parse_target
from jobworker.rpc.client import Client
from jobworker.rpc.resume import OutputInterrupted, never_connected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobworker.cli.session import Session

T = TypeVar("T")


def call(
    session: Session,
    doing: str,
    action: Callable[[Client], Awaitable[T]],
    *,
    in_doubt: str = "",
) -> T:
    """Run `action` with a client; raises Failure with a sentence that says what it was `doing`.

    `in_doubt` is what to say besides when the request may have been sent and the answer was lost;
    with it, Ctrl-C raises Interrupted instead of KeyboardInterrupt.
    """
    connection = connection_of(session)
    _show_warnings()

    async def run() -> T:
        async with Client(
            connection.url,
            cert=connection.cert,
            key=connection.key,
            ca=connection.ca,
            program="jobworker-cli",
        ) as client:
            return await action(client)

    try:
        return asyncio.run(run())
    except grpc.RpcError as error:
        text = f"cannot {doing}: {explain(error, connection)}"
        if in_doubt and _answer_was_lost(error):
            text += f"\n{in_doubt[0].upper()}{in_doubt[1:]}."
        raise Failure(text) from error
    except KeyboardInterrupt:
        if in_doubt:
            raise Interrupted(in_doubt) from None
        raise
    except OutputInterrupted as error:
        lost = error.__cause__
        problem = explain(lost, connection) if isinstance(lost, grpc.RpcError) else error.problem
        raise Failure(
            f"cannot {doing} to its end: {problem}\n"
            f"It was cut off at byte {error.offset}; --offset {error.offset} gets the rest."
        ) from error


def _show_warnings() -> None:
    """Show what jobworker itself logs (of certificates, for example); libraries stay quiet."""
    logging.basicConfig(handlers=[logging.NullHandler()])
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jobworker-cli: warning: %(message)s"))
    logging.getLogger("jobworker").addHandler(handler)


def connection_of(session: Session) -> Connection:
    """Return where to connect to and with what; raises click.UsageError if that is not known."""
    given = {"url": session.url, "cert": session.cert, "key": session.key, "ca": session.ca}
    try:
        connection = resolve(given, session.context)
        parse_target(connection.url)
    except ConfigError as error:
        raise click.UsageError(str(error), _program()) from error
    except ValueError as error:
        raise click.UsageError(f"--url: {error}", _program()) from error
    return connection


def _program() -> click.Context:
    return click.get_current_context().find_root()


def _answer_was_lost(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and not never_connected(error)
