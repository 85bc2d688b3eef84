"""``jobworker-cli output``: a job's output, byte for byte, on standard output."""

from __future__ import annotations

import errno
import os
import select
import sys
from typing import TYPE_CHECKING, Final

import click

from jobworker.cli.calls import call
from jobworker.cli.copying import STREAMS, Copy, copy_all, is_split, where
from jobworker.cli.interrupts import interrupts
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.session import Failure
from jobworker.cli.units import parse_offset
from jobworker.program import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client


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
  jobworker-cli output --stream stderr "$JOB_ID" > errors.log
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
@click.option(
    "--stream",
    type=click.Choice(list(STREAMS)),
    help="Only this one of a job that was started with --split-stderr.  [default: both]",
)
@format_option
@job_id_argument
@click.pass_obj
def command(
    session: Session, /, job_id: str, *, tail: bool, offset: int, stream: str | None
) -> None:
    """Write what a job has written so far (stdout and stderr), byte for byte.

    When the connection is lost it is taken up again where it was; no byte is repeated or skipped.
    Ctrl-C ends only this program: the job goes on.

    What a job with --split-stderr has written to its standard error goes to this program's, unless
    --stream picks one of the two, which goes to standard output. --offset counts in each.
    What a cap on the output has dropped is missing, and said on standard error.

    As JSON: one object a line, with the bytes in base64, the last one with the end.
    """
    copies = [Copy(job_id, stream or "", Writer(sys.stdout.fileno(), offset))]
    as_json = session.format == "json"

    async def copy(client: Client) -> None:
        if stream is None and await is_split(client, job_id):
            fds = (sys.stdout.fileno(), (sys.stdout if as_json else sys.stderr).fileno())
            copies[:] = [
                Copy(job_id, name, Writer(fd, offset))
                for name, fd in zip(STREAMS, fds, strict=True)
            ]
        await copy_all(client, copies, tail=tail, as_json=as_json)

    try:
        call(session, f"get the output of job {job_id}", copy)
    except KeyboardInterrupt:
        how = " --format json" if as_json else ""
        rest = "".join(
            f"\nTo see the rest:  jobworker-cli output {each.rest()}{how} {job_id}"
            for each in copies
        )
        click.echo(
            f"\njobworker-cli: detached at {where(copies)}; the job goes on unless it has ended."
            f"\nTo stop it:       jobworker-cli stop {job_id}{rest}",
            err=True,
        )
        raise click.exceptions.Exit(INTERRUPTED) from None


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
