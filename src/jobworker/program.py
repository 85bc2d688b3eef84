"""What the two programs have in common: how they end, what they say then, and their help."""

from __future__ import annotations

import os
import signal
import traceback
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import click

from jobworker.errors import JobWorkerError
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT
BROKEN_PIPE: Final = 128 + signal.SIGPIPE

WIDTH: Final = 100
"""Columns that a help text may take, on a terminal that has them."""


class Interrupted(Exception):
    """Raised when Ctrl-C came while something was under way; the text says what that means."""


def run(cli: click.Group, program: str, arguments: Sequence[str]) -> int:
    """Run one command line and return the exit status; every failure is a message on stderr."""
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
        return USAGE
    except click.UsageError as error:
        _show_traceback()
        path = error.ctx.command_path if error.ctx is not None else program
        say(program, f"{printable(error.format_message())}\nTry '{path} --help'.")
        return USAGE
    except (JobWorkerError, click.ClickException) as error:
        _show_traceback()
        say(program, str(error))
        return FAILED
    except OSError as error:
        _show_traceback()
        say(program, f"cannot go on: {error}")
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence instead of a traceback
        _show_traceback()
        what = f"internal error: {error!r}; please report it with the output of JOBWORKER_DEBUG=1"
        say(program, what)
        return FAILED
    return 0


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
        found = group.get_command(parent, name) if isinstance(group, click.Group) else None
        if found is None:
            known = group.list_commands(parent) if isinstance(group, click.Group) else []
            raise click.UsageError(no_command(name, known), ctx)
        parent = click.Context(found, info_name=name, parent=parent)
    write(parent.get_help())


def no_command(name: str, known: Iterable[str]) -> str:
    """Say that there is no command of this `name`, and which was meant."""
    known = list(known)
    meant = get_close_matches(name, known, 1)
    rest = f"did you mean {meant[0]}?" if meant else f"there are: {', '.join(known)}"
    return f"there is no command {name!r}; {rest}" if known else f"there is no command {name!r}"
