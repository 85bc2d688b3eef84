"""``jobworker-cli status``: everything that is known of a job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument
from jobworker.cli.render import status_text, to_json
from jobworker.program import write

if TYPE_CHECKING:
    from jobworker.cli.session import Session


@click.command(
    cls=SectionedCommand,
    short_help="Fetch a job's status",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli status "$JOB_ID"
  jobworker-cli status --format json "$JOB_ID" | jq -r .status.status
""",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str) -> None:
    """Show a job's state, its command, times, limits and usage.

    The JSON has the names and the structure of the wire contract's StatusResponse.
    """
    response = call(session, f"get the status of job {job_id}", lambda c: c.status(job_id))
    if session.format == "json":
        write(to_json(response))
    else:
        write(status_text(response, time.time(), local_time))


def local_time(seconds: float) -> str:
    """Write a time (seconds since the epoch) in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)).rstrip()
