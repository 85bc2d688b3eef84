"""``jobworker-cli run``: start a job, follow its output, and end as it does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from jobworker import heap
from jobworker.cli import ended, start
from jobworker.cli.calls import call
from jobworker.cli.copying import copy_output, say_interrupted
from jobworker.cli.options import SectionedCommand
from jobworker.cli.render import to_json
from jobworker.cli.session import Failure
from jobworker.cli.writer import writer
from jobworker.program import BROKEN_PIPE, INTERRUPTED
from jobworker.text import join, printable

if TYPE_CHECKING:
    from jobworker.cli.session import Session
    from jobworker.rpc.client import Client
    from jobworker.rpc.v1.jobworker_pb2 import StartResponse, StatusDetail

_AS_A_SHELL: Final = {
    "CommandNotExecutable": ended.NOT_EXECUTABLE,
    "CommandNotFound": ended.NOT_FOUND,
}
"""Why a job was not started → the exit status that a shell would have."""

_EPILOG: Final = """\b
Exit status: the job's own exit code; 128 and the signal that ended it; 126 if
the command cannot be executed, 127 if it is not found; 125 if something else
failed, or the job's end is not known; 130 after Ctrl-C.

\b
Examples:
  jobworker-cli run make -j4 > make.log
  jobworker-cli run --timeout 10m --memory-max 1G sh -c './configure && make'
  jobworker-cli run --stdin sort < names.txt
"""


@click.command(
    cls=SectionedCommand,
    short_help="Run a job as if it were a command here",
    options_metavar="[FLAGS]",
    context_settings={"allow_interspersed_args": False},
    epilog=_EPILOG,
    params=list(start.command.params),  # So that whatever can be started can be run.
)
@click.pass_obj
def command(session: Session, /, command_line: tuple[str, ...], **flags: Any) -> None:
    """Start COMMAND as a job on the server, write its output, and end as it does.

    The output is written byte for byte from the first one on. When the connection is lost, or the
    server is restarted, it goes on where it was. Ctrl-C detaches: the job goes on.

    As JSON: one object a line, first the answer to the start, then the output as output writes it.
    """
    started = _start(session, command_line, flags)
    for warning in started.warnings:
        click.echo(f"jobworker-cli: warning: {printable(warning)}", err=True)
    detail = _follow(session, started)
    if text := ended.remark(started.job_id, detail):
        click.echo(f"jobworker-cli: {printable(text)}", err=True)
    raise click.exceptions.Exit(ended.exit_status(detail))


def _start(session: Session, command_line: tuple[str, ...], flags: dict[str, Any]) -> StartResponse:
    request = start.build_request(command_line, flags)
    if flags["send_stdin"]:
        request.stdin = start.read_stdin()
    try:
        return call(
            session,
            f"start {join(command_line)}",
            lambda client: client.start(request),
            in_doubt="the job may have been started all the same: the same command with "
            f"--request-id {request.request_id} finds it, or starts it if it was not",
        )
    except Failure as failure:
        status = _AS_A_SHELL.get(failure.kind)
        if status is None:
            raise
        click.echo(f"jobworker-cli: {failure}", err=True)
        raise click.exceptions.Exit(status) from failure


def _follow(session: Session, started: StartResponse) -> StatusDetail:
    """Write all output, and return how the job has ended."""
    job_id = started.job_id
    heap.keep()
    out = writer(sys.stdout.fileno(), 0)
    ends: list[StatusDetail] = []

    async def copy(client: Client) -> None:
        as_json = session.format == "json"
        if as_json:
            out.write_as(f"{to_json(started, indent=None)}\n".encode(), 0)
        stream = client.output(
            job_id,
            tail=True,
            on_interrupted=lambda problem: say_interrupted(
                f"the output of job {job_id}", out, problem
            ),
        )
        ends.append((await copy_output(stream, out, as_json=as_json)).status)

    try:
        call(session, f"get the output of job {job_id}", copy)
    except KeyboardInterrupt:
        out.close()
        click.echo(f"\njobworker-cli: {_detached(job_id, out.offset)}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        click.echo(f"jobworker-cli: {_detached(job_id, out.offset)}", err=True)
        raise click.exceptions.Exit(BROKEN_PIPE) from None
    except Failure as failure:
        raise Failure(f"{failure}\nIt is {_detached(job_id, out.offset)}") from failure
    return ends[-1]


def _detached(job_id: str, offset: int) -> str:
    return (
        f"detached at byte {offset}; the job goes on unless it has ended."
        f"\nTo stop it:       jobworker-cli stop {job_id}"
        f"\nTo see the rest:  jobworker-cli output --tail --offset {offset} {job_id}"
        f"\nTo know its end:  jobworker-cli wait {job_id}"
    )
