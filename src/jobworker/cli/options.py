"""How the commands' flags are declared: read by the parsers of `units`, grouped in the help."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from jobworker import ids
from jobworker.cli.session import FORMATS, Session
from jobworker.command import Command, Option
from jobworker.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

OTHER: Final = "Options"


class SectionedOption(Option):
    """An option that knows under which heading the help shows it."""

    def __init__(self, *args: Any, section: str = OTHER, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(Command):
    """A command whose help lists its options under their headings, in the order of declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each heading; what has none comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                section = getattr(param, "section", OTHER)
                sections.setdefault(section, []).append(record)
        sections[OTHER] = sections.pop(OTHER)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def option(
    *names: str,
    parse: Callable[[str], Any],
    section: str = OTHER,
    **settings: Any,
) -> Callable[[F], F]:
    """Declare a flag whose value `parse` reads; its ValueError becomes a usage error."""
    return click.option(
        *names,
        cls=SectionedOption,
        section=section,
        callback=parsed(parse),
        **settings,
    )


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a click callback that reads a value, or each of a repeated one, with `parse`."""

    def read(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is None:
            return None
        try:
            if isinstance(value, tuple):
                return tuple(parse(utf8(item)) for item in value)
            return parse(utf8(value))
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return read


def complete_signals(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of signals that begin so, with SIG if that is how it begins."""
    names = [each.name for each in signal.Signals]
    typed = incomplete.upper()
    if not typed.startswith("SIG"):
        names = [name.removeprefix("SIG") for name in names]
    return [name for name in names if name.startswith(typed)]


def utf8(text: str) -> str:
    """Return `text`; raises ValueError if it is not UTF-8, which is all the wire can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not UTF-8 and cannot be sent to the server") from None
    return text


def format_option(function: F) -> F:
    """Add ``--format`` to a command; it overrides the global one."""

    def choose(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(Session).format = value

    return click.option(
        "--format",
        type=click.Choice(FORMATS),
        callback=choose,
        expose_value=False,
        help="How to print the answer.  [default: text]",
    )(function)


def parse_job_id(text: str) -> str:
    """Return a job's id; raises ValueError for what no job has."""
    if not text:
        raise ValueError("it is empty; give the id that start has printed")
    try:
        return ids.parse_job_id(text)
    except InvalidArgument as error:
        raise ValueError(error.problem) from error


job_id_argument: Final = click.argument("job_id", metavar="JOB_ID", callback=parsed(parse_job_id))
job_ids_argument: Final = click.argument(
    "job_ids", nargs=-1, required=True, metavar="JOB_ID...", callback=parsed(parse_job_id)
)
