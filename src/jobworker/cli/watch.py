"""``jobworker-cli watch``: what happens to jobs, as it happens."""

from __future__ import annotations

import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from jobworker.cli import events
from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, format_option, option, parse_job_id, parsed
from jobworker.cli.render import to_json
from jobworker.cli.writer import Writer
from jobworker.program import INTERRUPTED
from jobworker.rpc.resume import GIVE_UP_AFTER
from jobworker.text import join, printable

if TYPE_CHECKING:
    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import WatchResponse


def _given(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


@click.command(
    cls=SectionedCommand,
    short_help="Watch what happens to jobs",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli watch
  jobworker-cli watch --owner user_alpha
  jobworker-cli watch --format json | jq -c '[.job_id, .type]'
  jobworker-cli watch --since-token "$TOKEN" "$JOB_ID"
""",
)
@option("--owner", parse=_given, metavar="USER", help="Only jobs of this user.")
@option(
    "--since-token",
    parse=_given,
    metavar="TOKEN",
    help="Begin after the event with this resume_token, instead of now.",
)
@format_option
@click.argument("job_id", metavar="[JOB_ID]", required=False, callback=parsed(parse_job_id))
@click.pass_obj
def command(
    session: Session, /, job_id: str | None, *, owner: str | None, since_token: str | None
) -> None:
    """Write a line for each event: of all jobs, of one, or of one user's.

    Events are started, stopping, limits updated, paused, resumed, signaled,
    ended and removed. A line has the time, the job, the event, the job's
    status, who asked for it (- if nobody did), and the job's name if it has
    one. It goes on until Ctrl-C; of one job, until that is removed.

    When the connection is lost it is taken up again where it was: no event is
    repeated or skipped, also if the server was killed meanwhile. The same holds
    for --since-token, as long as the server keeps the events after it.

    As JSON: one object a line, with the names of the wire contract's
    WatchResponse. The first one has no event, only the resume_token that stands
    for now; so may others, where many events are left out.
    """
    out = _Lines(since_token or "")

    async def show(client: Client) -> None:
        watched = client.watch(
            out.token,
            job_id=job_id or "",
            owner=owner or "",
            on_interrupted=_say_interrupted,
        )
        async with aclosing(watched):
            async for event in watched:
                out.write(event.resume_token, _text(session, event))

    try:
        call(session, f"watch job {job_id}" if job_id else "watch jobs", show)
    except KeyboardInterrupt:
        words = ["jobworker-cli", "watch"]
        words += ["--owner", owner] if owner else []
        words += ["--format", "json"] if session.format == "json" else []
        words += ["--since-token", out.token, *([job_id] if job_id else [])]
        text = f"\nTo go on from there:  {join(words)}" if out.token else ""
        click.echo(f"\njobworker-cli: left; jobs go on.{text}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _say_interrupted(problem: str) -> None:
    click.echo(
        f"jobworker-cli: the events are interrupted, trying again for up to {GIVE_UP_AFTER:g} s: "
        f"{printable(problem)}",
        err=True,
    )


def _text(session: Session, event: WatchResponse) -> str:
    if session.format == "json":
        return to_json(event, indent=None)
    return events.line(event, _local_time) if event.type else ""


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class _Lines:
    """Writes lines, each of them at once, and knows after which one Ctrl-C has come."""

    def __init__(self, token: str) -> None:
        self._out = Writer(sys.stdout.fileno(), 0)
        self._tokens = {0: token}

    @property
    def token(self) -> str:
        """Continues after the last line that was written completely."""
        return self._tokens[self._out.offset]

    def write(self, token: str, line: str) -> None:
        """Write a line that takes the reader as far as `token`; no line takes it there at once."""
        lines = self._out.offset
        if not line:
            self._tokens = {lines: token}
            return
        self._tokens = {lines: self.token, lines + 1: token}
        self._out.write_as(f"{line}\n".encode(), 1)
