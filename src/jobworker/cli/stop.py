"""``jobworker-cli stop``: end a job, and return when it has ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from jobworker.cli.calls import call
from jobworker.cli.options import (
    SectionedCommand,
    complete_signals,
    format_option,
    job_id_argument,
    option,
)
from jobworker.cli.units import parse_duration, parse_signal
from jobworker.program import write

if TYPE_CHECKING:
    from fractions import Fraction

    from jobworker.cli.session import Session


@click.command(
    cls=SectionedCommand,
    short_help="Stop a job",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli stop "$JOB_ID"
  jobworker-cli stop --signal INT --grace 1m "$JOB_ID"
""",
)
@option(
    "--signal",
    "signum",
    parse=parse_signal,
    metavar="SIGNAL",
    shell_complete=complete_signals,
    help="What to send first: INT, SIGINT, 2.  [default: the job's own]",
)
@option(
    "--grace",
    parse=parse_duration,
    metavar="DURATION",
    help="Time from the stop signal to SIGKILL; 0 kills at once.  [default: the job's own]",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str, grace: Fraction | None, signum: int | None) -> None:
    """Stop a job: the stop signal, the grace period, then SIGKILL for what is left of it.

    Returns when the job has ended. Stopping a job that has ended already does nothing. A job may be
    stopped more than once: every signal is sent, and the grace period that ends first counts.
    """
    seconds = None if grace is None else float(grace)
    call(
        session,
        f"stop job {job_id}",
        lambda client: client.stop(job_id, seconds, signum),
        in_doubt="the server goes on stopping the job if the request has reached it: "
        f"jobworker-cli status {job_id} says whether it has ended",
    )
    if session.format == "json":
        write(json.dumps({"job_id": job_id}))
