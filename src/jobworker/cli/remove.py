"""``jobworker-cli remove``: have finished jobs forgotten, and their output deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import grpc

from jobworker.cli.calls import call, failure
from jobworker.cli.main import PROGRAM
from jobworker.cli.options import SectionedCommand, format_option, job_ids_argument
from jobworker.program import FAILED, say, write
from jobworker.rpc.resume import never_connected

if TYPE_CHECKING:
    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client


@click.command(
    cls=SectionedCommand,
    short_help="Remove finished jobs and their output",
    options_metavar="[FLAGS]",
    epilog="""\b
Exit status: 0 if all of them were removed, else 1.

\b
Examples:
  jobworker-cli remove "$JOB_ID"
  jobworker-cli remove --force "$FIRST" "$SECOND"
""",
)
@click.option("--force", "-f", is_flag=True, help="Kill those that have not ended first.")
@format_option
@job_ids_argument
@click.pass_obj
def command(session: Session, /, job_ids: tuple[str, ...], *, force: bool) -> None:
    """Remove finished jobs and their output; print the id of each, once it is removed.

    A job that cannot be removed, one that runs for example, keeps no other from being removed. Who
    is reading a job's output gets the rest of it.

    As JSON: one object a line.
    """
    failures: list[tuple[str, grpc.RpcError]] = []

    async def remove(client: Client) -> None:
        for job_id in dict.fromkeys(job_ids):
            try:
                if force:
                    await client.stop(job_id, grace=0)
                await client.remove(job_id)
            except grpc.RpcError as error:
                if never_connected(error):
                    raise
                failures.append((job_id, error))
            else:
                write(json.dumps({"job_id": job_id}) if session.format == "json" else job_id)

    call(
        session,
        f"remove job {', '.join(job_ids)}",
        remove,
        in_doubt="the job that was next may have been removed all the same",
    )
    for job_id, error in failures:
        say(PROGRAM, str(failure(session, f"remove job {job_id}", error, _in_doubt(job_id))))
    if failures:
        raise click.exceptions.Exit(FAILED)


def _in_doubt(job_id: str) -> str:
    return f"it may be removed all the same: jobworker-cli status {job_id} says whether it is"
