"""``jobworker-cli output``: a job's output, byte for byte, on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from jobworker import heap
from jobworker.cli.calls import call
from jobworker.cli.copying import STREAMS, Copy, copy_all, is_split, where
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.units import parse_count, parse_offset, parse_size
from jobworker.cli.writer import Writer
from jobworker.program import INTERRUPTED

if TYPE_CHECKING:
    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client


@click.command(
    cls=SectionedCommand,
    short_help="Fetch a job's output",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli output "$JOB_ID" > job.log
  jobworker-cli output --tail "$JOB_ID"
  jobworker-cli output --tail --last 20 "$JOB_ID"
  jobworker-cli output --stream stderr "$JOB_ID" > errors.log
""",
)
@click.option("--tail", "-f", is_flag=True, help="Tail the output of the job until it has ended.")
@option(
    "--last",
    parse=parse_count,
    metavar="LINES",
    help="Begin so many lines before the end of what is there.",
)
@option(
    "--last-bytes",
    parse=parse_size,
    metavar="SIZE",
    help="Begin so many bytes before the end of what is there.",
)
@option(
    "--since-offset",
    "--offset",
    "offset",
    parse=parse_offset,
    metavar="BYTES",
    help="Begin so many bytes after the start of the output.  [default: 0]",
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
    session: Session,
    /,
    job_id: str,
    *,
    tail: bool,
    last: int | None,
    last_bytes: int | None,
    offset: int | None,
    stream: str | None,
) -> None:
    """Write what a job has written so far (stdout and stderr), byte for byte.

    When the connection is lost it is taken up again where it was; no byte is repeated or skipped.
    Ctrl-C ends only this program: the job goes on.

    What a job with --split-stderr has written to its standard error goes to this program's, unless
    --stream picks one of the two, which goes to standard output. Where to begin counts in each.
    What a cap on the output has dropped is missing, and said on standard error.

    As JSON: one object a line, with the bytes in base64, the last one with the end.
    """
    _refuse_two({"--last": last, "--last-bytes": last_bytes, "--since-offset": offset})
    heap.keep()
    begins = {"last_lines": last, "last_bytes": last_bytes}
    begins_at_last = {key: value for key, value in begins.items() if value is not None}
    as_json = session.format == "json"

    def copy_of(name: str, fd: int) -> Copy:
        return Copy(job_id, name, Writer(fd, offset or 0), last=begins_at_last)

    copies = [copy_of(stream or "", sys.stdout.fileno())]

    async def copy(client: Client) -> None:
        if stream is None and await is_split(client, job_id):
            fds = (sys.stdout.fileno(), (sys.stdout if as_json else sys.stderr).fileno())
            copies[:] = [copy_of(name, fd) for name, fd in zip(STREAMS, fds, strict=True)]
        await copy_all(client, copies, tail=tail, as_json=as_json, reached=stream is None)

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


def _refuse_two(given: dict[str, int | None]) -> None:
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise click.UsageError(f"{flags[1]} cannot be combined with {flags[0]}; give one of them")
