"""The program `jobworker-cli`: global flags, the table of commands, exit statuses and messages."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import jobworker
from jobworker.cli.session import FORMATS, Failure, Session
from jobworker.cli.text import printable
from jobworker.errors import JobWorkerError
from jobworker.rpc.defaults import DEFAULT_ADDRESS, DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAM: Final = "jobworker-cli"

COMMANDS: Final[Mapping[str, str]] = {
    "help": "Help about any command",
    "start": "Start a job",
    "stop": "Stop a job",
    "status": "Fetch a job's status",
    "output": "Fetch a job's output",
}
"""Name → short help. The module of the same name has the command; it is loaded when it is used."""

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT
BROKEN_PIPE: Final = 128 + signal.SIGPIPE


class CommandTable(click.Group):
    """The commands, each in a module of its own that is imported only when it is called for."""

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
    epilog=f"""\b
Settings are taken from the flag, then from the variable, then from a context
in ~/.config/jobworker/config.toml:
  current = "lab"
  [contexts.lab]
  url = "jobs.example.org:{DEFAULT_PORT}"
  cert = "~/certs/user_alpha.crt"
  key = "~/certs/user_alpha.key"
  ca = "~/certs/ca.crt"

\b
Completion: eval "$(_JOBWORKER_CLI_COMPLETE=bash_source {PROGRAM})"
(zsh_source for zsh; fish: _JOBWORKER_CLI_COMPLETE=fish_source {PROGRAM} | source)

\b
Exit status: 0; 1 if the call failed; 2 for wrong usage; 130 after Ctrl-C;
141 if what reads the output went away. JOBWORKER_DEBUG=1 shows tracebacks.
""",
)
@click.option(
    "--url",
    envvar="JOBWORKER_URL",
    show_envvar=True,
    metavar="HOST[:PORT]",
    help="URL of the jobworker server: host, host:port, [IPv6]:port or https://host:port."
    f"  [default: {DEFAULT_ADDRESS}]",
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
    help="Context of the configuration file to use.  [default: its `current`]",
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
    _prepare()
    if "_JOBWORKER_CLI_COMPLETE" in os.environ:
        cli.main(prog_name=PROGRAM)
    status = run(sys.argv[1:])
    sys.stderr.flush()
    # Taking the interpreter apart would cost as much time as a call, and nothing is left to do:
    # the channel is closed and what was printed is flushed.
    os._exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return the exit status; every failure is a message on stderr."""
    try:
        with cli.make_context(PROGRAM, list(arguments)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough of it, as in `jobworker-cli output … | head`.
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        _show_traceback()
        path = error.ctx.command_path if error.ctx is not None else PROGRAM
        _say(f"{printable(error.format_message())}\nTry '{path} --help'.")
        return USAGE
    except (Failure, JobWorkerError, click.ClickException) as error:
        _show_traceback()
        _say(str(error))
        return FAILED
    except OSError as error:
        _show_traceback()
        _say(f"cannot go on: {error}")
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence instead of a traceback
        _show_traceback()
        _say(f"internal error: {error!r}; please report it with the output of JOBWORKER_DEBUG=1")
        return FAILED
    return 0


def _prepare() -> None:
    if sys.stdout is None or sys.stderr is None:
        # A socket opened later would get the descriptor, and be written to.
        sys.exit(f"{PROGRAM}: standard output or standard error is closed")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not _debugging():
        # gRPC's core writes of failed handshakes to stderr; what matters reaches us as an error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # asyncio replaces only Python's own handler, by one that cannot interrupt a blocking write.
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _debugging() -> bool:
    return os.environ.get("JOBWORKER_DEBUG", "") not in ("", "0")


def _show_traceback() -> None:
    if _debugging():
        traceback.print_exc()


def _say(text: str) -> None:
    click.echo(f"{PROGRAM}: {text}", err=True)


if __name__ == "__main__":
    main()
