"""``jobworker-cli stats``: what a job uses, once or as it goes on."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import click

from jobworker.cli import figures
from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument, option
from jobworker.cli.render import to_json
from jobworker.cli.status import local_time
from jobworker.cli.units import parse_duration
from jobworker.program import write
from jobworker.rpc.resume import FINISHED, GIVE_UP_AFTER
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import StatsResponse


SHORTEST_INTERVAL: Final = Fraction(1, 10)
"""Seconds between two samples that the server takes."""


def _interval(text: str) -> Fraction:
    interval = parse_duration(text)
    if interval < SHORTEST_INTERVAL:
        raise ValueError(f"{text!r} is less than 100ms")
    return interval


@click.command(
    cls=SectionedCommand,
    short_help="Show what a job uses",
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
    parse=_interval,
    metavar="DURATION",
    help="Time between two samples, with --follow; 1s by default, at least 100ms.",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str, *, follow: bool, interval: Fraction | None) -> None:
    """Show what a job uses: CPU, memory, I/O and processes.

    With --follow, a line a sample: CPU is in percent of one CPU, and rates are
    those since the line before. The last line is that of the job's end. A
    figure whose controller the server does not have is -; a block leaves it
    out. Of a job that has ended, what it has used in all is shown as a block.
    When the connection is lost it is taken up again; there is no line for the
    time between.

    As JSON: one object a line, with the names of the wire contract's
    StatsResponse; what is not known is absent.
    """
    if interval is not None and not follow:
        raise click.UsageError("--interval is of no use without --follow")
    seconds = None if interval is None else float(interval)

    async def show(client: Client) -> None:
        before: StatsResponse | None = None
        samples = client.stats(
            job_id, follow=follow, interval=seconds, on_interrupted=_say_interrupted
        )
        async for sample in samples:
            for line in _lines(session, sample, before, follow=follow):
                write(line)
            before = sample

    again = f"the job goes on unless it has ended: jobworker-cli stats --follow {job_id} shows more"
    call(session, f"get the stats of job {job_id}", show, in_doubt=again if follow else "")


def _say_interrupted(problem: str) -> None:
    click.echo(
        f"jobworker-cli: the stats are interrupted, trying again for up to {GIVE_UP_AFTER:g} s: "
        f"{printable(problem)}",
        err=True,
    )


def _lines(
    session: Session, sample: StatsResponse, before: StatsResponse | None, *, follow: bool
) -> Iterator[str]:
    if session.format == "json":
        yield to_json(sample, indent=None)
    elif not follow or (before is None and sample.status.status in FINISHED):
        yield figures.block(sample, local_time)
    else:
        if before is None:
            yield figures.header()
        yield figures.line(sample, before, _time_of_day)


def _time_of_day(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
