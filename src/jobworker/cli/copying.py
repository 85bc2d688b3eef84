"""Copying a job's output to descriptors: one stream or both at once, byte for byte."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import click
import grpc

from jobworker.cli.gaps import Gaps
from jobworker.cli.render import to_json
from jobworker.rpc.resume import GIVE_UP_AFTER, Patience
from jobworker.rpc.v1.jobworker_pb2 import OutputStream
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobworker.cli.writer import Writer
    from jobworker.rpc.client import Client
    from jobworker.rpc.frames import OutputMessage
    from jobworker.rpc.v1.jobworker_pb2 import StatusDetail

STREAMS: Final = {
    "stdout": OutputStream.OUTPUT_STREAM_STDOUT,
    "stderr": OutputStream.OUTPUT_STREAM_STDERR,
}
"""What is typed for a stream → its number on the wire."""


class Copy:
    """One stream of a job on its way to a descriptor: `stream` is its name, "" the only one's.

    It begins where `out` stands, or with the `last` of it: `last_bytes` or `last_lines`.
    """

    def __init__(
        self,
        job_id: str,
        stream: str,
        out: Writer,
        *,
        what: str = "the output",
        last: Mapping[str, int] | None = None,
    ) -> None:
        self._job_id = job_id
        self.stream = stream
        self.out = out
        self._last = last or {}
        self._begin = out.offset
        self._what = f"{what} ({stream})" if stream else what
        self._gaps = Gaps(self._what)

    async def run(
        self, client: Client, *, tail: bool, as_json: bool, reached: bool
    ) -> StatusDetail:
        """Copy to the end; return the job's status then. Raises what `Client.output` raises.

        `out.offset` is how far it has come, also when it fails.
        """
        status: StatusDetail | None = None
        size = 0
        stream = client.output(
            self._job_id,
            tail=tail,
            offset=self.out.offset,
            stream=STREAMS[self.stream or "stdout"],
            reached=reached,
            on_interrupted=self._say_interrupted,
            **self._last,
        )
        try:
            async with aclosing(stream) as messages:
                async for message in messages:
                    self._take(message, as_json=as_json)
                    if message.has_end:
                        status = message.end.status
                        size = message.end.size
        finally:
            _say(self._gaps.rest())
        if status is None:
            raise AssertionError("a stream ends with its end")
        if not self._last and size < self._begin:
            _say(f"{self._what} has only {size} bytes; byte {self._begin} is beyond its end")
        return status

    def rest(self) -> str:
        """Return the flags of `output` that fetch the rest."""
        stream = f"--stream {self.stream} " if self.stream else ""
        return f"--tail {stream}--offset {self.out.offset}"

    def _take(self, message: OutputMessage, *, as_json: bool) -> None:
        if message.gap:
            begin = message.offset - message.gap
            _say(self._gaps.note(begin, message.offset, time.monotonic()))
        # Without output it may be the end of an output that is shorter than where we began.
        if message.offset != self.out.offset and (message.view or message.gap):
            self.out.offset = message.offset
        if as_json:
            self.out.write_as(self._line(message), len(message.view))
        else:
            self.out.write(message.view)

    def _line(self, message: OutputMessage) -> bytes:
        more: dict[str, Any] = {"stream": self.stream} if self.stream else {}
        return to_json(message.message(), indent=None, **more).encode() + b"\n"

    def _say_interrupted(self, problem: str) -> None:
        _say(
            f"{self._what} is interrupted at byte {self.out.offset}, trying again for up to "
            f"{GIVE_UP_AFTER:g} s: {printable(problem)}"
        )


async def copy_all(
    client: Client, copies: Sequence[Copy], *, tail: bool, as_json: bool, reached: bool
) -> StatusDetail:
    """Copy streams at once, each to its end; return the job's status then.

    A server that was `reached` before, and is away now, is waited for.

    The first that fails ends the others, and is raised.
    """
    if len(copies) == 1:
        return await copies[0].run(client, tail=tail, as_json=as_json, reached=reached)
    tasks = [
        asyncio.create_task(each.run(client, tail=tail, as_json=as_json, reached=reached))
        for each in copies
    ]
    try:
        return (await asyncio.gather(*tasks))[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def where(copies: Sequence[Copy]) -> str:
    """Say how far they have come."""
    if len(copies) == 1:
        return f"byte {copies[0].out.offset}"
    return " and ".join(f"byte {each.out.offset} of {each.stream}" for each in copies)


async def is_split(client: Client, job_id: str) -> bool:
    """Tell whether a job's standard error is kept apart; waits for a server that was lost."""
    patience = Patience()
    while True:
        patience.asks(time.monotonic())
        try:
            return (await client.status(job_id)).job.split_stderr
        except grpc.aio.AioRpcError as error:
            delay = patience.lost(time.monotonic(), error)
        await asyncio.sleep(delay)


def _say(text: str) -> None:
    if text:
        click.echo(f"jobworker-cli: {text}", err=True)
