"""``jobworker-cli help``: the help of the program, or of one of its commands."""

from __future__ import annotations

import click

from jobworker.cli.options import SectionedCommand
from jobworker.command import complete_commands
from jobworker.program import show_help


@click.command(cls=SectionedCommand, short_help="Help about any command")
@click.argument("name", metavar="[COMMAND]", nargs=-1, shell_complete=complete_commands)
@click.pass_context
def command(ctx: click.Context, name: tuple[str, ...]) -> None:
    """Show the help of COMMAND, or of the program."""
    show_help(ctx, name)
