"""A job's output as commands show it: bytes or JSON on stdout, what there is to say on stderr."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from jobworker.cli.render import to_json
from jobworker.rpc.resume import GIVE_UP_AFTER
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobworker.cli.writer import Writer
    from jobworker.rpc.frames import OutputMessage
    from jobworker.rpc.v1.jobworker_pb2 import OutputEnd


async def copy_output(
    stream: AsyncGenerator[OutputMessage, None], out: Writer, *, as_json: bool
) -> OutputEnd:
    """Write a stream to `out`, and return its end. What a cap has dropped is said."""
    end = None
    async with aclosing(stream) as messages:
        async for message in messages:
            if message.offset != out.offset:
                await out.flush()
                if message.gap:
                    _say_dropped(message)
                out.offset = message.offset
            if as_json:
                line = f"{to_json(message.message(), indent=None)}\n"
                out.write_as(line.encode(), len(message.view))
            elif message.view:
                await out.take(message.view)
            if message.has_end:
                end = message.end
    await out.flush()
    assert end is not None  # noqa: S101 - without it the stream raises
    return end


def _say_dropped(message: OutputMessage) -> None:
    begin = message.offset - message.gap
    click.echo(
        f"jobworker-cli: {message.gap} bytes dropped by the output cap, from byte {begin} on",
        err=True,
    )


def say_interrupted(what: str, out: Writer, problem: str) -> None:
    """Say that the connection is lost, and for how long it is tried to get it back."""
    click.echo(
        f"jobworker-cli: {what} is interrupted at byte {out.offset}, trying again for up "
        f"to {GIVE_UP_AFTER:g} s: {printable(problem)}",
        err=True,
    )
