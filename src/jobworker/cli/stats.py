"""``jobworker-cli stats``: what a job uses, once or as it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from jobworker.cli import figures
from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.render import to_json
from jobworker.cli.status import local_time
from jobworker.cli.units import parse_duration
from jobworker.program import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import StatsResponse


@click.command(
    cls=SectionedCommand,
    short_help="Watch what a job uses",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli stats "$JOB_ID"
  jobworker-cli stats --follow --interval 500ms "$JOB_ID"
  jobworker-cli stats --follow --format json "$JOB_ID" | jq .memory_current
""",
)
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@option(
    "--interval",
    parse=parse_duration,
    default="1s",
    show_default=True,
    metavar="DURATION",
    help="Time between two samples, with --follow; at least 100ms.",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str, *, follow: bool, interval: Fraction) -> None:
    """Show what a job uses: CPU, memory, I/O and processes.

    With --follow, a line a sample: CPU is in percent of one CPU, and rates are
    those since the line before. The last line is that of the job's end. A
    figure that the server's kernel does not have is -.

    As JSON: one object a line, with the names of the wire contract's
    StatsResponse; what is not known is absent.
    """

    async def show(client: Client) -> None:
        before: StatsResponse | None = None
        async for sample in client.stats(job_id, follow=follow, interval=float(interval)):
            for line in _lines(session, sample, before, follow=follow):
                write(line)
            before = sample

    call(session, f"get the stats of job {job_id}", show)


def _lines(
    session: Session, sample: StatsResponse, before: StatsResponse | None, *, follow: bool
) -> Iterator[str]:
    if session.format == "json":
        yield to_json(sample, indent=None)
    elif not follow:
        yield figures.block(sample, local_time)
    else:
        if before is None:
            yield figures.header()
        yield figures.line(sample, before, _time_of_day)


def _time_of_day(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
