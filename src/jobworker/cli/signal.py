"""``jobworker-cli signal``: send a signal to a job."""

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
    parsed,
)
from jobworker.cli.units import parse_signal
from jobworker.program import write

if TYPE_CHECKING:
    from jobworker.cli.session import Session


@click.command(
    cls=SectionedCommand,
    short_help="Send a signal to a job",
    options_metavar="[FLAGS]",
    epilog="""\b
SIGNAL is a name, with SIG or without, or a number: HUP, SIGUSR1, 10, RTMIN+1.
A paused job hears it when it goes on. KILL, and a signal that it has no
handler for and dies of, end it at once.

\b
Examples:
  jobworker-cli signal HUP "$JOB_ID"
  jobworker-cli signal --all KILL "$JOB_ID"
""",
)
@click.option("--all", "all_processes", is_flag=True, help="Send it to all processes of the job.")
@format_option
@click.argument(
    "signum",
    metavar="SIGNAL",
    callback=parsed(parse_signal),
    shell_complete=complete_signals,
)
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str, signum: int, *, all_processes: bool) -> None:
    """Send a signal to a job's main process.

    What the job makes of it is its own affair: to end a job, and to know that it has ended, there
    is stop.
    """
    call(
        session,
        f"signal job {job_id}",
        lambda client: client.signal(job_id, signum, all_processes=all_processes),
        in_doubt="the signal may have been sent all the same",
    )
    if session.format == "json":
        write(json.dumps({"job_id": job_id}))
