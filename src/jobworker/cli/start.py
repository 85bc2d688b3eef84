"""``jobworker-cli start``: from flags and a command line to a job's id."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from jobworker.cli import limits, units
from jobworker.cli.calls import call
from jobworker.cli.options import (
    SectionedCommand,
    SectionedOption,
    complete_signals,
    format_option,
    option,
    parsed,
)
from jobworker.cli.render import to_json
from jobworker.cli.session import Failure, Session
from jobworker.rpc.v1.jobworker_pb2 import Command, StartRequest
from jobworker.text import join, printable

if TYPE_CHECKING:
    from fractions import Fraction

JOB: Final = "Job"
STDIN_MAX: Final = 1024 * 1024
"""Bytes of standard input that a request may carry."""
OUTPUT_MAX_MIN: Final = 64 * 1024
"""Bytes of the smallest cap on an output."""

_EPILOG: Final = """\b
Everything after the command's name belongs to the command. No shell is
involved: use sh -c '...' for pipes, redirection and variables.

\b
Examples:
  jobworker-cli start sleep 60
  jobworker-cli start --memory-max 512M --cpu-max 1.5 make -j4
  jobworker-cli start --timeout 1h30m --env A=1 --env TOKEN sh -c 'date; env'
  jobworker-cli start --user nobody --io-max-wbps /dev/vda:10M cp -r /usr /tmp
  jobworker-cli start --stdin sort < names.txt
  jobworker-cli start --output-max 64M --split-stderr ./worker --verbose
  jobworker-cli output --tail "$(jobworker-cli start ping -c 3 localhost)"
"""


def _env(text: str) -> tuple[str, str]:
    if "=" in text:
        return units.parse_pair(text)
    value = os.environ.get(text)
    if not text or value is None:
        raise ValueError(f"{text!r} is not KEY=VALUE, nor a variable of this environment")
    value.encode()
    return text, value


def _timeout(text: str) -> Fraction:
    seconds = units.parse_duration(text)
    if not seconds:
        raise ValueError(f"{text!r} would leave the job no time; without the flag it has no limit")
    return seconds


def _output_max(text: str) -> int:
    size = units.parse_size(text)
    if size < OUTPUT_MAX_MIN:
        raise ValueError(f"{text!r} would keep too little; give 64K or more, or max")
    return size


def _directory(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


@click.command(
    cls=SectionedCommand,
    short_help="Start a job",
    options_metavar="[FLAGS]",
    context_settings={"allow_interspersed_args": False},
    epilog=_EPILOG,
)
@limits.limit_options
@option(
    "--env",
    parse=_env,
    section=JOB,
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Add a variable; KEY alone takes the value from here. Repeatable.",
)
@option(
    "--working-directory",
    parse=_directory,
    section=JOB,
    metavar="DIR",
    help="Absolute path on the server's host.  [default: /]",
)
@option(
    "--user",
    parse=str,
    section=JOB,
    metavar="USER",
    help="Name or number of the host's user.  [default: the server's own]",
)
@click.option(
    "--stdin",
    "send_stdin",
    cls=SectionedOption,
    section=JOB,
    is_flag=True,
    help="Send this program's standard input (to its end, at most 1 MiB).  [default: empty]",
)
@option(
    "--timeout",
    parse=_timeout,
    section=JOB,
    metavar="DURATION",
    help="Stop the job after this time: 90s, 5m, 1h30m, 1.5.  [default: no limit]",
)
@option(
    "--output-max",
    parse=_output_max,
    section=JOB,
    metavar="SIZE",
    help="Keep only the newest bytes of the output: 64K or more, or max for all.  "
    "[default: the server's]",
)
@click.option(
    "--split-stderr",
    cls=SectionedOption,
    section=JOB,
    is_flag=True,
    help="Keep standard error apart from standard output.  [default: one output]",
)
@option(
    "--stop-signal",
    parse=units.parse_signal,
    section=JOB,
    metavar="SIGNAL",
    shell_complete=complete_signals,
    help="What stop sends first: TERM, SIGTERM, 15.  [default: TERM]",
)
@option(
    "--stop-grace",
    parse=units.parse_duration,
    section=JOB,
    metavar="DURATION",
    help="Time from that signal to SIGKILL; 0 kills at once.  [default: 10s]",
)
@option("--name", parse=str, section=JOB, metavar="NAME", help="A name for people.")
@option(
    "--label",
    parse=units.parse_pair,
    section=JOB,
    multiple=True,
    metavar="KEY=VALUE",
    help="A label. Repeatable.",
)
@option(
    "--request-id",
    parse=str,
    section=JOB,
    metavar="ID",
    help="Starting again with the same ID returns the same job.  [default: a new one]",
)
@format_option
@click.argument(
    "command_line",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="COMMAND [ARG]...",
    callback=parsed(str),
)
@click.pass_obj
def command(session: Session, /, command_line: tuple[str, ...], **flags: Any) -> None:
    """Start COMMAND as a job on the server and print the job's id."""
    request = build_request(command_line, flags)
    if flags["send_stdin"]:
        request.stdin = read_stdin()
    response = call(
        session,
        f"start {join(command_line)}",
        lambda client: client.start(request),
        in_doubt="the job may have been started all the same: the same command with "
        f"--request-id {request.request_id} finds it, or starts it if it was not",
    )
    for warning in response.warnings:
        click.echo(f"jobworker-cli: warning: {printable(warning)}", err=True)
    try:
        click.echo(to_json(response) if session.format == "json" else response.job_id)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(
            f"the job {response.job_id} was started, but its id cannot be written: {error.strerror}"
        ) from error


def build_request(command_line: tuple[str, ...], flags: dict[str, Any]) -> StartRequest:
    """Turn a command line and the values of the flags into the request."""
    name, *args = command_line
    request = StartRequest(
        command=Command(name=name, args=args),
        limits=limits.from_flags(flags),
        # An id of our own makes it safe to ask again after the answer was lost.
        request_id=flags["request_id"] or os.urandom(16).hex(),
        env=dict(flags["env"]),
        working_directory=flags["working_directory"],
        user=flags["user"],
        name=flags["name"],
        labels=dict(flags["label"]),
        output_max_bytes=flags["output_max"],
        split_stderr=flags["split_stderr"],
    )
    if flags["timeout"] is not None:
        request.timeout.FromNanoseconds(round(flags["timeout"] * 10**9))
    if flags["stop_signal"] is not None:
        request.stop.signal = flags["stop_signal"]
    if flags["stop_grace"] is not None:
        request.stop.grace.FromNanoseconds(round(flags["stop_grace"] * 10**9))
    return request


def read_stdin() -> bytes:
    """Read standard input to its end; raises Failure if it is longer than a request may carry."""
    if sys.stdin is None:
        raise Failure("cannot read standard input: it is closed")
    try:
        data = sys.stdin.buffer.read(STDIN_MAX + 1)
    except OSError as error:
        raise Failure(f"cannot read standard input: {error.strerror}") from error
    if len(data) > STDIN_MAX:
        raise Failure(
            "cannot send standard input: it is longer than 1 MiB; "
            "put it into a file on the server's host"
        )
    return data
