"""``jobworker-cli list``: which jobs there are."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from jobworker.cli.calls import call
from jobworker.cli.options import SectionedCommand, SectionedOption, format_option, option
from jobworker.cli.render import to_json
from jobworker.cli.table import Table, parse_moment
from jobworker.cli.units import parse_count, parse_pair
from jobworker.program import write
from jobworker.rpc.resume import FINISHED
from jobworker.rpc.v1.jobworker_pb2 import ListRequest, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import Job

WHICH: Final = "Which jobs"
DEFAULT_LIMIT: Final = 100
UNSHORTENED: Final = 160
"""Columns of a line that no terminal shows."""

STATUSES: Final[Mapping[str, tuple[Status.ValueType, ...]]] = {
    "pending": (Status.STATUS_PENDING,),
    "running": (Status.STATUS_RUNNING,),
    "stopped": (Status.STATUS_STOPPED,),
    "exited": (Status.STATUS_EXITED,),
    "lost": (Status.STATUS_LOST,),
    "finished": tuple(sorted(FINISHED)),
}
"""What is typed → what is asked for."""


def _limit(text: str) -> int:
    limit = parse_count(text)
    if not limit:
        raise ValueError(f"{text!r} would list nothing")
    return limit


def _moment(text: str) -> float:
    return parse_moment(text, time.time())


@click.command(
    cls=SectionedCommand,
    short_help="List jobs",
    options_metavar="[FLAGS]",
    epilog="""\b
Examples:
  jobworker-cli list --status running
  jobworker-cli list --owner user_alpha --label team=infra --since 2h
  jobworker-cli list --status exited --format json | jq .status.exit_code
  jobworker-cli list -q --status running | xargs -rn1 jobworker-cli stop
""",
)
@click.option(
    "--status",
    "statuses",
    cls=SectionedOption,
    section=WHICH,
    multiple=True,
    type=click.Choice([*STATUSES]),
    metavar="STATUS",
    help=f"One of {', '.join(STATUSES)}. Repeatable: any of them.",
)
@option("--owner", parse=str, section=WHICH, metavar="USER", help="Those that USER has started.")
@option("--name", parse=str, section=WHICH, metavar="NAME", help="Those of that name.")
@option(
    "--label",
    "labels",
    parse=parse_pair,
    section=WHICH,
    multiple=True,
    metavar="KEY=VALUE",
    help="Those with that label. Repeatable: all of them.",
)
@option(
    "--since",
    parse=_moment,
    section=WHICH,
    metavar="TIME",
    help="Accepted at that time or later: 90s, 2h, 3d ago, or 2026-01-31T08:00:00Z.",
)
@option("--until", parse=_moment, section=WHICH, metavar="TIME", help="Accepted before that time.")
@option(
    "--limit",
    parse=_limit,
    metavar="N",
    help=f"How many jobs at most.  [default: {DEFAULT_LIMIT}]",
)
@click.option("--all", "everything", is_flag=True, help="All of them, however many there are.")
@click.option("--quiet", "-q", is_flag=True, help="Print the ids alone.")
@format_option
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    statuses: tuple[str, ...],
    owner: str | None,
    name: str | None,
    labels: tuple[tuple[str, str], ...],
    since: float | None,
    until: float | None,
    limit: int | None,
    everything: bool,
    quiet: bool,
) -> None:
    """List jobs, newest first, a line each; a job has to match all flags that are given.

    AGE is the time since the job was accepted.

    As JSON: one object a line, with the names of the wire contract's Job.
    """
    if everything and limit is not None:
        raise click.UsageError("--all and --limit exclude each other")
    most = None if everything else limit or DEFAULT_LIMIT
    request = ListRequest(
        statuses=sorted({number for word in statuses for number in STATUSES[word]}),
        owner=owner or "",
        name=name or "",
        labels=dict(_consistent(labels)),
    )
    if since is not None:
        request.created_after.FromNanoseconds(round(since * 1e9))
    if until is not None:
        request.created_before.FromNanoseconds(round(until * 1e9))
    table = Table(time.time(), _width())

    def show(jobs: list[Job]) -> None:
        if quiet:
            lines = [job.id for job in jobs]
        elif session.format == "json":
            lines = [to_json(job, indent=None) for job in jobs]
        else:
            lines = table.lines(jobs)
        for line in lines:
            write(line)

    async def fetch(client: Client) -> bool:
        shown = 0
        async for page in client.list_pages(request, limit=None if most is None else most + 1):
            show([*page][: None if most is None else most - shown])
            shown += len(page)
        return most is not None and shown > most

    truncated = call(session, "list jobs", fetch)
    if not quiet and session.format != "json":
        for line in table.end():
            write(line)
    if truncated:
        click.echo(f"jobworker-cli: there are more than {most} of them; --all lists them", err=True)


def _consistent(labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return `labels`, unless one key has two values: no job could match."""
    seen: dict[str, str] = {}
    for key, value in labels:
        if seen.setdefault(key, value) != value:
            raise click.UsageError(f"--label: no job has both {seen[key]!r} and {value!r} as {key}")
    return labels


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNSHORTENED
