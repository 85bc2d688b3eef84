"""``jobworker-cli wait``: wait for jobs to end, and end as they did."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click
import grpc

from jobworker.cli.calls import call
from jobworker.cli.ended import exit_status, remark
from jobworker.cli.options import SectionedCommand, format_option, job_ids_argument, option
from jobworker.cli.render import to_json
from jobworker.cli.units import format_duration, parse_duration
from jobworker.program import write
from jobworker.rpc.resume import FINISHED, GIVE_UP_AFTER, StreamInterrupted
from jobworker.rpc.v1.jobworker_pb2 import WaitResponse
from jobworker.text import printable

if TYPE_CHECKING:
    from fractions import Fraction

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import StatusDetail


@click.command(
    cls=SectionedCommand,
    short_help="Wait until jobs have ended",
    options_metavar="[FLAGS]",
    epilog="""\b
Exit status: the job's own exit code; 128 and the signal that ended it; 124 if
--timeout has passed; 125 if its end is not known, or the call failed. Of
several jobs, that of the first one in the order given that is not 0.

\b
Examples:
  jobworker-cli wait "$JOB_ID" && echo done
  jobworker-cli wait --timeout 10m "$FIRST" "$SECOND"
""",
)
@option(
    "--timeout",
    parse=parse_duration,
    metavar="DURATION",
    help="How long to wait at most; 0 does not wait.  [default: no limit]",
)
@format_option
@job_ids_argument
@click.pass_obj
def command(session: Session, /, job_ids: tuple[str, ...], timeout: Fraction | None) -> None:
    """Wait until jobs have ended; print the exit status of each, a line for each job, in order.

    A lost connection is taken up again. Ctrl-C ends only this program: the jobs go on.

    As JSON: one object a line.
    """
    seconds = None if timeout is None else float(timeout)
    statuses: list[int] = []

    def tell(job_id: str, detail: StatusDetail) -> None:
        statuses.append(exit_status(detail))
        if session.format == "json":
            write(to_json(WaitResponse(status=detail), indent=None, job_id=job_id))
        else:
            write(str(statuses[-1]))
        text = remark(job_id, detail)
        if detail.status not in FINISHED:
            text = f"job {job_id} has not ended after {format_duration(timeout or 0)}"
        if text:
            click.echo(f"jobworker-cli: {printable(text)}", err=True)

    async def wait(client: Client) -> None:
        waiting = [
            asyncio.create_task(client.wait(job_id, seconds, on_interrupted=_say_interrupted))
            for job_id in job_ids
        ]
        failures: list[Exception] = []
        for job_id, task in zip(job_ids, waiting, strict=True):
            try:
                tell(job_id, await task)
            except (grpc.RpcError, StreamInterrupted) as error:
                failures.append(error)
        if failures:
            raise failures[0]

    which = " ".join(job_ids)
    call(
        session,
        f"wait for job {', '.join(job_ids)}",
        wait,
        in_doubt=f"what has not ended goes on: jobworker-cli wait {which} waits for it again",
    )
    raise click.exceptions.Exit(next(filter(None, statuses), 0))


def _say_interrupted(problem: str) -> None:
    click.echo(
        "jobworker-cli: the connection is interrupted, trying again for up to "
        f"{GIVE_UP_AFTER:g} s: {printable(problem)}",
        err=True,
    )
