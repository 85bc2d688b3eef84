"""How commands and flags of the programs are declared, and what their help looks like. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NARROW: Final = 80
_TERM_WIDTHS: Final = (10, 30)


class Formatter(click.HelpFormatter):
    """Puts explanations below their flags on a narrow terminal, where no path fits beside one."""

    def write_dl(
        self,
        rows: Iterable[tuple[str, str]],
        col_max: int | None = None,
        col_spacing: int = 2,
    ) -> None:
        """Write a list of flags or commands, and what they are."""
        usual = _TERM_WIDTHS[self.width >= _NARROW - 2]
        super().write_dl(rows, usual if col_max is None else col_max, col_spacing)


class Context(click.Context):
    """What every command of the programs runs in."""

    formatter_class = Formatter


class Command(click.Command):
    """A command of one of the programs."""

    context_class = Context


class Group(click.Group):
    """A program, or commands that belong together."""

    context_class = Context
    command_class = Command
    group_class = type
    elsewhere: Mapping[str, str] = MappingProxyType({})
    """What people call things in other programs → what to say."""
    failure_status: Mapping[str, int] = MappingProxyType({})
    """Commands whose exit status is otherwise another program's → the one of their own failures."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a command line; the error says which one was meant."""
        name = args[0]
        if not (name.startswith("-") or ctx.resilient_parsing or self.get_command(ctx, name)):
            raise click.UsageError(self.no_command(ctx, name), ctx)
        return super().resolve_command(ctx, args)

    def no_command(self, ctx: click.Context, name: str) -> str:
        """Say that there is no command of this `name`, and which was meant."""
        known = self.list_commands(ctx)
        hint = self.elsewhere.get(name)
        if hint is None:
            from difflib import get_close_matches  # noqa: PLC0415 - for a mistake alone

            meant = get_close_matches(name, known, 1)
            hint = f"did you mean {meant[0]}?" if meant else f"there are: {', '.join(known)}"
        return f"there is no command {name!r}; {hint}"


def complete_commands(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the commands of the program that begin so."""
    group = ctx.find_root().command
    names = group.list_commands(ctx) if isinstance(group, click.Group) else []
    return [name for name in names if name.startswith(incomplete)]


class Option(click.Option):
    """A flag; `default_text` is what the help says of a default that click does not know."""

    def __init__(self, *args: Any, default_text: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default_text = default_text

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Return what the help says in brackets."""
        extra = super().get_help_extra(ctx)
        if self._default_text:
            extra["default"] = self._default_text
        return extra
