"""``jobworker-cli update``: change the limits of a running job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobworker.cli import limits
from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, job_id_argument
from jobworker.cli.render import to_json
from jobworker.program import write
from jobworker.rpc.v1.jobworker_pb2 import Limits
from jobworker.text import printable

if TYPE_CHECKING:
    from jobworker.cli.session import Session


@click.command(
    cls=SectionedCommand,
    short_help="Change a running job's limits",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli update --memory-max 1G --memory-high 900M "$JOB_ID"
  jobworker-cli update --cpu-max max --cpu-burst-max 0 "$JOB_ID"
""",
)
@limits.limit_options
@format_option
@job_id_argument
@click.pass_obj
def command(session: Session, /, job_id: str, **flags: Any) -> None:
    """Change limits of a running job, and print all that are in force then.

    What is not given stays as it is; max takes a limit away (0 takes memory-min,
    memory-low and the burst away, 100 is the usual weight). All that is given is
    applied, or nothing is changed.
    """
    wanted = limits.from_flags(flags)
    if wanted == Limits():
        raise click.UsageError("nothing to change: give at least one limit, --memory-max 1G say")
    response = call(
        session,
        f"change the limits of job {job_id}",
        lambda client: client.update_limits(job_id, wanted),
        in_doubt="they may have been changed all the same: "
        f"jobworker-cli status {job_id} says which are in force",
    )
    for warning in response.warnings:
        click.echo(f"jobworker-cli: warning: {printable(warning)}", err=True)
    if session.format == "json":
        write(to_json(response))
    elif lines := limits.describe(response.limits):
        write("\n".join(map(printable, lines)))
