"""``jobworker-cli pause``: freeze a job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument
from jobworker.program import write

if TYPE_CHECKING:
    from jobworker.cli.session import Session


@click.command(
    cls=SectionedCommand,
    short_help="Pause a job",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli pause "$JOB_ID"
  jobworker-cli resume "$JOB_ID"
""",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str) -> None:
    """Freeze all processes of a job; returns when they are frozen.

    The job stays running, and keeps its memory; its timeout goes on. Pausing a
    paused job does nothing. A paused job can be stopped: it goes on for its
    grace period.
    """
    call(
        session,
        f"pause job {job_id}",
        lambda client: client.pause(job_id),
        in_doubt=f"the job may have been paused all the same: "
        f"jobworker-cli status {job_id} says whether it is paused",
    )
    if session.format == "json":
        write(json.dumps({"job_id": job_id}))
