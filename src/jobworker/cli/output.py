"""``jobworker-cli output``: a job's output, byte for byte, on standard output."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import click

from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.render import to_json
from jobworker.cli.session import Failure
from jobworker.cli.text import printable
from jobworker.cli.units import parse_offset
from jobworker.rpc.resume import GIVE_UP_AFTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import OutputResponse


STEP: Final = 64 * 1024
"""Bytes of one write: what a pipe holds (pipe(7)).

A signal that arrives in a write which has written a part ends it, and the exception that the signal
raises takes the count with it; so a step is all that Ctrl-C can make us underestimate.
"""


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
    written = offset
    stdout = sys.stdout.fileno()

    def say_interrupted(problem: str) -> None:
        click.echo(
            f"jobworker-cli: the output is interrupted at byte {written}, trying again for up to "
            f"{GIVE_UP_AFTER:g} s: {printable(problem)}",
            err=True,
        )

    async def copy(client: Client) -> None:
        nonlocal written
        output = client.output(job_id, tail=tail, offset=offset, on_interrupted=say_interrupted)
        async for message in output:
            if session.format == "json":
                deque(write(stdout, _line(message)), maxlen=0)
                written += len(message.output)
            else:
                for count in write(stdout, message.output):
                    written += count

    try:
        call(session, f"get the output of job {job_id}", copy)
    except KeyboardInterrupt:
        click.echo(
            f"\njobworker-cli: detached at byte {written}; the job goes on unless it has ended."
            f"\nTo stop it:       jobworker-cli stop {job_id}"
            f"\nTo see the rest:  jobworker-cli output --tail --offset {written} {job_id}",
            err=True,
        )
        raise


def _line(message: OutputResponse) -> bytes:
    return to_json(message, indent=None).encode() + b"\n"


def write(fd: int, data: bytes) -> Iterator[int]:
    """Write all of `data`, and yield how many bytes each step has written.

    It waits where `fd` is non-blocking and full. Raises BrokenPipeError when the reader is gone,
    and Failure for everything else.
    """
    rest = memoryview(data)
    while rest:
        try:
            count = os.write(fd, rest[:STEP])
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except BrokenPipeError:
            raise
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "?")
            raise Failure(f"cannot write the output: {error.strerror} ({name})") from error
        else:
            rest = rest[count:]
            yield count
