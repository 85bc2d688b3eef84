"""Calls to the server: the connection that the flags describe, and failures as sentences."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Final, TypeVar

import click
import grpc

from jobworker import garbage
from jobworker.auth.files import FileMissing
from jobworker.cli.context import Connection, config_path, resolve
from jobworker.cli.session import Failure
from jobworker.errors import ConfigError
from jobworker.program import Interrupted
from jobworker.rpc.channel import parse_target
from jobworker.rpc.client import Client
from jobworker.rpc.errors import error_name
from jobworker.rpc.resume import OutputInterrupted, StreamInterrupted, never_connected
from jobworker.rpc.watch import WatchInterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobworker.cli.session import Session

T = TypeVar("T")

PATIENCE: Final = 2.0
"""Seconds of silence after which a person is told what is waited for."""


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
    warnings = _Warnings()

    async def run() -> T:
        async with Client(
            connection.url,
            cert=connection.cert,
            key=connection.key,
            ca=connection.ca,
            program="jobworker-cli",
        ) as client:
            patience = asyncio.create_task(_lose_patience(client, connection.url, warnings))
            try:
                return await action(client)
            finally:
                patience.cancel()

    garbage.look_from_now_on()
    try:
        result = asyncio.run(run())
    except grpc.RpcError as error:
        if not never_connected(error):  # Else the error says what a warning suspects.
            warnings.show()
        raise failure(session, doing, error, in_doubt) from error
    except KeyboardInterrupt:
        warnings.show()
        if in_doubt:
            raise Interrupted(in_doubt) from None
        raise
    except FileMissing as error:
        flag = f"--{error.setting} (or JOBWORKER_{error.setting.upper()}, or the context)"
        raise Failure(f"{error.problem}; check {flag}") from error
    except StreamInterrupted as error:
        lost = error.__cause__
        problem = _explain(lost, connection) if isinstance(lost, grpc.RpcError) else error.problem
        text = f"cannot {doing} to its end: {problem}"
        if isinstance(error, OutputInterrupted):
            text += (
                f"\nIt was cut off at byte {error.offset}; --offset {error.offset} gets the rest."
            )
        elif isinstance(error, WatchInterrupted) and error.resume_token:
            text += f"\n--since-token {error.resume_token} goes on from there."
        raise Failure(text) from error
    warnings.show()
    return result


def failure(session: Session, doing: str, error: grpc.RpcError, in_doubt: str = "") -> Failure:
    """Return what `call` raises for the failure of a call."""
    text = _cannot(doing, _explain(error, connection_of(session)))
    if in_doubt and _answer_was_lost(error):
        text += f"\n{in_doubt[0].upper()}{in_doubt[1:]}."
    return Failure(text, error_name(error))


def _explain(error: grpc.RpcError, connection: Connection) -> str:
    from jobworker.cli.failure import explain  # noqa: PLC0415 - most calls succeed

    return explain(error, connection)


def _cannot(doing: str, reason: str) -> str:
    # The server's sentence may say the same: that the job cannot be started, or what cannot be done
    # to this very job.
    verb, _, which = doing.partition(" ")
    job = re.search(r"\bjob \S+$", doing)
    if job and re.match(rf"cannot [^:]*\b{re.escape(job[0])}(?: [^:]*)?:", reason):
        return reason
    return f"cannot {verb} {which}: {reason.removeprefix(f'cannot {verb} the job: ')}"


class _Warnings(logging.Handler):
    """Keeps what jobworker itself logs (of certificates, for example); libraries stay quiet."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[str] = []
        logging.basicConfig(handlers=[logging.NullHandler()])
        logging.getLogger("jobworker").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._kept.append(record.getMessage())

    def show(self) -> None:
        """Show what was kept, once."""
        for message in self._kept:
            click.echo(f"jobworker-cli: warning: {message}", err=True)
        self._kept.clear()


async def _lose_patience(client: Client, url: str, warnings: _Warnings) -> None:
    """Show warnings of a call that takes long, and say so to a person whom the server lets wait."""
    await asyncio.sleep(PATIENCE)
    if client.connected:
        warnings.show()
    elif sys.stderr.isatty():
        click.echo(f"jobworker-cli: waiting for {url} to answer; Ctrl-C gives up", err=True)


def connection_of(session: Session) -> Connection:
    """Return where to connect to and with what; raises click.UsageError if that is not known."""
    given = {"url": session.url, "cert": session.cert, "key": session.key, "ca": session.ca}
    try:
        connection = resolve(given, session.context)
        parse_target(connection.url)
    except ConfigError as error:
        raise click.UsageError(str(error), _program()) from error
    except ValueError as error:
        where = "--url (or JOBWORKER_URL)" if session.url else f"url in {config_path(os.environ)}"
        raise click.UsageError(f"{where}: {error}", _program()) from error
    return connection


def _program() -> click.Context:
    return click.get_current_context().find_root()


def _answer_was_lost(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and not never_connected(error)
