"""``jobworker-cli output``: a job's output, byte for byte, on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from jobworker import heap
from jobworker.cli.calls import call
from jobworker.cli.copying import copy_output, say_interrupted
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.units import parse_count, parse_offset, parse_size
from jobworker.cli.writer import writer
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
) -> None:
    """Write what a job has written so far (stdout and stderr), byte for byte.

    When the connection is lost it is taken up again where it was; no byte is repeated or skipped.
    Where a cap on the output has dropped bytes, that is said on standard error.
    Ctrl-C ends only this program: the job goes on.

    As JSON: one object a line, with the bytes in base64, the last one with the end.
    """
    _refuse_two({"--last": last, "--last-bytes": last_bytes, "--since-offset": offset})
    heap.keep()
    out = writer(sys.stdout.fileno(), offset or 0)

    async def copy(client: Client) -> None:
        await copy_output(
            client.output(
                job_id,
                tail=tail,
                offset=offset or 0,
                last_lines=last,
                last_bytes=last_bytes,
                on_interrupted=lambda problem: say_interrupted("the output", out, problem),
            ),
            out,
            as_json=session.format == "json",
        )

    try:
        call(session, f"get the output of job {job_id}", copy)
    except KeyboardInterrupt:
        out.close()
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


def _refuse_two(given: dict[str, int | None]) -> None:
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise click.UsageError(f"{flags[1]} cannot be combined with {flags[0]}; give one of them")
