"""``jobworker-cli run``: start a job, follow its output, and end as it does."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from jobworker import heap, program
from jobworker.cli import ended, start
from jobworker.cli.calls import call
from jobworker.cli.copying import STREAMS, Copy, copy_all, where
from jobworker.cli.options import SectionedCommand
from jobworker.cli.render import to_json
from jobworker.cli.session import Failure
from jobworker.cli.writer import Writer
from jobworker.program import BROKEN_PIPE, INTERRUPTED
from jobworker.text import join, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

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
failed, or the job's end is not known; 130 after Ctrl-C; 141 if what reads the
output went away.

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
    server is restarted, it goes on where it was. Ctrl-C detaches: the job goes on. When what reads
    the output goes away, as in `... | head`, the job is stopped.

    As JSON: one object a line, first the answer to the start, then the output as output writes it.
    """
    started = _start(session, command_line, flags)
    for warning in started.warnings:
        click.echo(f"jobworker-cli: warning: {printable(warning)}", err=True)
    detail = _follow(session, started, split=flags["split_stderr"])
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


def _follow(session: Session, started: StartResponse, *, split: bool) -> StatusDetail:
    """Write all output, and return how the job has ended."""
    job_id = started.job_id
    as_json = session.format == "json"
    heap.keep()
    fds = (sys.stdout.fileno(), (sys.stdout if as_json else sys.stderr).fileno())
    copies = [
        Copy(job_id, name, Writer(fd, 0), what=f"the output of job {job_id}")
        for name, fd in zip(STREAMS if split else ("",), fds, strict=False)
    ]

    async def copy(client: Client) -> StatusDetail:
        if as_json:
            copies[0].out.write_as(f"{to_json(started, indent=None)}\n".encode(), 0)
        return await copy_all(client, copies, tail=True, as_json=as_json, reached=True)

    try:
        return call(session, f"get the output of job {job_id}", copy)
    except KeyboardInterrupt:
        click.echo(f"\njobworker-cli: {_detached(job_id, copies)}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _stop(session, job_id, copies)
        raise click.exceptions.Exit(BROKEN_PIPE) from None
    except Failure as failure:
        raise Failure(f"{failure}\nIt is {_detached(job_id, copies)}") from failure


def _stop(session: Session, job_id: str, copies: Sequence[Copy]) -> None:
    """Stop a job whose output nobody reads, as SIGPIPE ends a command here."""
    with suppress(BrokenPipeError):  # It may be standard error whose reader is gone.
        program.say(
            "jobworker-cli",
            f"what reads the output went away at {where(copies)}; stopping job {job_id}, "
            "unless it has ended",
        )
    call(
        session,
        f"stop job {job_id}",
        lambda client: client.stop(job_id),
        in_doubt=f"the job may go on: jobworker-cli stop {job_id} stops it",
    )


def _detached(job_id: str, copies: Sequence[Copy]) -> str:
    rest = "".join(
        f"\nTo see the rest:  jobworker-cli output {each.rest()} {job_id}" for each in copies
    )
    return (
        f"detached at {where(copies)}; the job goes on unless it has ended."
        f"\nTo stop it:       jobworker-cli stop {job_id}{rest}"
        f"\nTo know its end:  jobworker-cli wait {job_id}"
    )
