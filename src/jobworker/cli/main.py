"""The program `jobworker-cli`: global flags, and the table of commands."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

import click

import jobworker
from jobworker import garbage, program
from jobworker.cli.interrupts import interrupts
from jobworker.cli.session import FORMATS, Session
from jobworker.command import Group, Option
from jobworker.rpc.defaults import DEFAULT_ADDRESS, DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAM: Final = "jobworker-cli"

COMMANDS: Final[Mapping[str, str]] = {
    "help": "Help about any command",
    "run": "Run a job as if it were a command here",
    "start": "Start a job",
    "stop": "Stop a job",
    "signal": "Send a signal to a job",
    "wait": "Wait until jobs have ended",
    "status": "Fetch a job's status",
    "list": "List jobs",
    "output": "Fetch a job's output",
    "stats": "Show what a job uses",
    "watch": "Watch what happens to jobs",
    "update": "Change a running job's limits",
    "pause": "Pause a job",
    "resume": "Let a paused job go on",
    "remove": "Remove finished jobs and their output",
    "completion": "Completion for your shell",
}
"""Name → short help. The module of the same name has the command; it is loaded when it is used."""

ELSEWHERE: Final[Mapping[str, str]] = {
    "create": "did you mean start?",
    "delete": "did you mean remove?",
    "exec": "did you mean run? What it starts is a job of its own",
    "kill": "did you mean signal, or stop? stop --grace 0 kills all of a job at once",
    "logs": "did you mean output? output --tail follows",
    "rm": "did you mean remove?",
    "tail": "did you mean output --tail?",
    "top": "did you mean stats --follow?",
    "events": "did you mean watch?",
    "unpause": "did you mean resume?",
    **dict.fromkeys(("jobs", "ls", "ps"), "did you mean list?"),
}
"""What people call things in other programs → what to say."""


FAILURE_STATUS: Final[Mapping[str, int]] = dict.fromkeys(("run", "wait"), 125)
"""Commands that end as a job does → their exit status for failures and wrong usage of their own."""


class CommandTable(Group):
    """The commands, each in a module of its own that is imported only when it is called for."""

    elsewhere = ELSEWHERE
    failure_status = FAILURE_STATUS

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order in which the help shows them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"jobworker.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="[GLOBAL FLAGS]",
    subcommand_metavar="COMMAND [COMMAND FLAGS]",
    epilog=f"""Settings are taken from the flag, then from the variable, then from a context
in ~/.config/jobworker/config.toml:

\b
  current = "lab"
  [contexts.lab]
  url = "jobs.example.org:{DEFAULT_PORT}"
  cert = "~/certs/user_alpha.crt"
  key = "~/certs/user_alpha.key"
  ca = "~/certs/ca.crt"

Exit status: 0; 1 if the call failed; 2 for wrong usage; 130 after Ctrl-C;
141 if what reads the output went away. run and wait end as the job does, and
with 125 if they fail. JOBWORKER_DEBUG=1 shows tracebacks.
""",
)
@click.option(
    "--url",
    envvar="JOBWORKER_URL",
    show_envvar=True,
    metavar="HOST[:PORT]",
    cls=Option,
    default_text=DEFAULT_ADDRESS,
    help="URL of the jobworker server: host, host:port, [IPv6]:port or https://host:port.",
)
@click.option(
    "--cert",
    envvar="JOBWORKER_CERT",
    show_envvar=True,
    metavar="FILE",
    help="Client x509 certificate (PEM).",
)
@click.option(
    "--key",
    envvar="JOBWORKER_KEY",
    show_envvar=True,
    metavar="FILE",
    help="Client private key (PEM).",
)
@click.option(
    "--ca",
    envvar="JOBWORKER_CA",
    show_envvar=True,
    metavar="FILE",
    help="Certificate authority shared by server and client (PEM).",
)
@click.option(
    "--context",
    envvar="JOBWORKER_CONTEXT",
    show_envvar=True,
    metavar="NAME",
    cls=Option,
    default_text="its `current`",
    help="Context of the configuration file to use.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="How to print answers; every command takes it as well.",
)
@click.version_option(jobworker.__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, output_format: str, **settings: str | None) -> None:
    """A simple interface for interacting with a jobworker server."""
    ctx.obj = Session(**settings, format=output_format)


def main() -> NoReturn:
    """Run the program and exit."""
    garbage.put_off()
    _prepare()
    if "_JOBWORKER_CLI_COMPLETE" in os.environ:
        cli.main(prog_name=PROGRAM)
    status = run(sys.argv[1:])
    with suppress(OSError):  # What nobody reads does not change how we end.
        sys.stderr.flush()
    # Taking the interpreter apart would cost as much time as a call, and nothing is left to do:
    # the channel is closed and what was printed is flushed.
    os._exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return the exit status; every failure is a message on stderr."""
    return program.run(cli, PROGRAM, arguments)


def _prepare() -> None:
    if sys.stdout is None or sys.stderr is None:
        # A socket opened later would get the descriptor, and be written to.
        if sys.stderr is not None:
            program.say(PROGRAM, "standard output is closed; > /dev/null throws it away")
        called = next((word for word in sys.argv[1:] if word in COMMANDS), "")
        sys.exit(FAILURE_STATUS.get(called, program.FAILED))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not program.debugging():
        # gRPC's core writes of failed handshakes to stderr; what matters reaches us as an error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    interrupts.install()


if __name__ == "__main__":
    main()
