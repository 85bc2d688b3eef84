"""What the two programs have in common: how they end, and what they say then."""

from __future__ import annotations

import os
import signal
import traceback
from typing import TYPE_CHECKING, Final

import click

from jobworker.command import Context, Group
from jobworker.errors import JobWorkerError
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT
BROKEN_PIPE: Final = 128 + signal.SIGPIPE


class Interrupted(Exception):
    """Raised when Ctrl-C came while something was under way; the text says what that means."""


def run(cli: click.Group, program: str, arguments: Sequence[str]) -> int:
    """Run one command line and return the exit status; every failure is a message on stderr."""
    ctx: click.Context | None = None
    try:
        with cli.make_context(program, list(arguments)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough of it, as in `jobworker-cli output … | head`.
        return BROKEN_PIPE
    except KeyboardInterrupt:
        say(program, "interrupted")
        return INTERRUPTED
    except Interrupted as error:
        say(program, f"interrupted; {error}")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return _failure(ctx, USAGE)
    except click.UsageError as error:
        _show_traceback()
        path = error.ctx.command_path if error.ctx is not None else program
        say(program, f"{printable(error.format_message())}\nTry '{path} --help'.")
        return _failure(ctx, USAGE)
    except (JobWorkerError, click.ClickException) as error:
        _show_traceback()
        say(program, str(error))
        return _failure(ctx, FAILED)
    except OSError as error:
        _show_traceback()
        say(program, f"cannot go on: {error}")
        return _failure(ctx, FAILED)
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence instead of a traceback
        _show_traceback()
        what = f"internal error: {error!r}; please report it with the output of JOBWORKER_DEBUG=1"
        say(program, what)
        return _failure(ctx, FAILED)
    return 0


def _failure(ctx: click.Context | None, usual: int) -> int:
    """Return the exit status of a failure, which is `usual` for most commands."""
    if ctx is None or ctx.invoked_subcommand is None or not isinstance(ctx.command, Group):
        return usual
    return ctx.command.failure_status.get(ctx.invoked_subcommand, usual)


def say(program: str, text: str) -> None:
    """Write a message to standard error."""
    click.echo(f"{program}: {text}", err=True)


def write(text: str) -> None:
    """Write an answer, a line or several, to standard output.

    Raises BrokenPipeError if its reader is gone, and JobWorkerError if it cannot be written.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise JobWorkerError(f"cannot write the answer: {error.strerror}") from error


def debugging() -> bool:
    """Tell whether somebody has asked for what only those can use who know the code."""
    return os.environ.get("JOBWORKER_DEBUG", "") not in ("", "0")


def _show_traceback() -> None:
    if debugging():
        traceback.print_exc()


def show_help(ctx: click.Context, names: Sequence[str]) -> None:
    """Show the help of the command that is called by `names` (none: the program's own)."""
    parent = ctx.find_root()
    for name in names:
        group = parent.command
        if not isinstance(group, Group):
            raise click.UsageError(f"{parent.command_path} has no command {name!r}", ctx)
        found = group.get_command(parent, name)
        if found is None:
            raise click.UsageError(group.no_command(parent, name), ctx)
        parent = Context(found, info_name=name, parent=parent)
    write(parent.get_help())
