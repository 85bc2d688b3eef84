"""``jobworker-cli output``: a job's output, byte for byte, on standard output."""

from __future__ import annotations

import errno
import os
import select
import sys
from typing import TYPE_CHECKING, Final

import click

from jobworker.cli.calls import call
from jobworker.cli.interrupts import interrupts
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.render import to_json
from jobworker.cli.session import Failure
from jobworker.cli.units import parse_offset
from jobworker.program import INTERRUPTED
from jobworker.rpc.resume import GIVE_UP_AFTER
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import OutputResponse


STEP: Final = 64 * 1024
"""Bytes of one write: what a pipe holds (pipe(7))."""


@click.command(
    cls=SectionedCommand,
    short_help="Fetch a job's output",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli output "$JOB_ID" > job.log
  jobworker-cli output --tail "$JOB_ID"
""",
)
@click.option("--tail", "-f", is_flag=True, help="Tail the output of the job until it has ended.")
@option(
    "--offset",
    parse=parse_offset,
    default="0",
    show_default=True,
    metavar="BYTES",
    help="Where to begin, in bytes from the start of the output.",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str, *, tail: bool, offset: int) -> None:
    """Write what a job has written so far (stdout and stderr), byte for byte.

    When the connection is lost it is taken up again where it was; no byte is repeated or skipped.
    Ctrl-C ends only this program: the job goes on.

    As JSON: one object a line, with the bytes in base64, the last one with the end.
    """
    out = Writer(sys.stdout.fileno(), offset)

    def say_interrupted(problem: str) -> None:
        click.echo(
            f"jobworker-cli: the output is interrupted at byte {out.offset}, trying again for up "
            f"to {GIVE_UP_AFTER:g} s: {printable(problem)}",
            err=True,
        )

    async def copy(client: Client) -> None:
        output = client.output(job_id, tail=tail, offset=offset, on_interrupted=say_interrupted)
        async for message in output:
            if session.format == "json":
                out.write_as(_line(message), len(message.output))
            else:
                out.write(message.output)

    try:
        call(session, f"get the output of job {job_id}", copy)
    except KeyboardInterrupt:
        rest = f"--tail --offset {out.offset}"
        if session.format == "json":
            rest += " --format json"
        click.echo(
            f"\njobworker-cli: detached at byte {out.offset}; the job goes on unless it has ended."
            f"\nTo stop it:       jobworker-cli stop {job_id}"
            f"\nTo see the rest:  jobworker-cli output {rest} {job_id}",
            err=True,
        )
        raise click.exceptions.Exit(INTERRUPTED) from None


def _line(message: OutputResponse) -> bytes:
    return to_json(message, indent=None).encode() + b"\n"


class Writer:
    """Writes a job's output to a descriptor, and knows at every moment how far it has come.

    Its methods wait where the descriptor takes nothing, and there Ctrl-C is heard. They raise
    BrokenPipeError when the reader is gone, and Failure for everything else.
    """

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self.offset = offset
        """The offset of the first byte of the output that was not written: exact, also when
        KeyboardInterrupt has ended a write."""

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        self._write(data, lambda count, _left: count)

    def write_as(self, line: bytes, size: int) -> None:
        """Write a `line` that stands for `size` bytes of the output, which count once it is out."""
        self._write(line, lambda _count, left: 0 if left else size)

    def _write(self, data: bytes, worth: Callable[[int, int], int]) -> None:
        rest = memoryview(data)
        while rest:
            # A signal ends a write that has written a part (signal(7)), and an exception raised by
            # its handler would take the count with it. Where poll sees room, a part is written.
            self._room.poll()
            with interrupts.held():
                count = _write(self._fd, rest[:STEP])
                rest = rest[count:]
                self.offset += worth(count, len(rest))


def _write(fd: int, data: memoryview) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise Failure(f"cannot write the output: {error.strerror} ({name})") from error
