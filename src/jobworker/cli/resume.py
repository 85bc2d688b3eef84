"""``jobworker-cli resume``: let a paused job go on."""

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
    short_help="Let a paused job go on",
    options_metavar="[FLAGS]",
    epilog="""\b
Example:
  jobworker-cli resume "$JOB_ID"
""",
)
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str) -> None:
    """Let a paused job go on; it does nothing for one that is not paused."""
    call(
        session,
        f"resume job {job_id}",
        lambda client: client.resume(job_id),
        in_doubt=f"the job may have been resumed all the same: "
        f"jobworker-cli status {job_id} says whether it is paused",
    )
    if session.format == "json":
        write(json.dumps({"job_id": job_id}))
