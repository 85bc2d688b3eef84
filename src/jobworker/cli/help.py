"""``jobworker-cli help``: the help of the program, or of one of its commands."""

from __future__ import annotations

from typing import cast

import click

from jobworker.cli.options import SectionedCommand


@click.command(cls=SectionedCommand, short_help="Help about any command")
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def command(ctx: click.Context, name: str | None) -> None:
    """Show the help of COMMAND, or of the program."""
    program = ctx.find_root()
    if name is None:
        click.echo(program.get_help())
        return
    table = cast("click.Group", program.command)
    found = table.get_command(program, name)
    if found is None:
        known = ", ".join(table.list_commands(program))
        raise click.UsageError(f"there is no command {name!r}; there are {known}", ctx)
    with click.Context(found, info_name=name, parent=program) as its_own:
        click.echo(found.get_help(its_own))
