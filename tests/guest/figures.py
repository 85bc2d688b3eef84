"""What the tests have measured: one table, for people and for programs. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Verdict = Literal["holds", "does not hold", "absent", "not measured"]


@dataclass(frozen=True)
class Figure:
    """One measurement of a limit; `asked` and `measured` are texts with their units.

    A verdict of "absent" means that this kernel does not have the file.
    """

    limit: str
    file: str
    asked: str
    measured: str
    verdict: Verdict


def complete(figures: Iterable[Figure], files: Mapping[str, str]) -> list[Figure]:
    """Return figures in the order of `files` (limit → file), those that are missing included.

    A file that was measured is not absent: it may come with a module that a test has loaded.
    """
    given = list(figures)
    measured = {(figure.limit, figure.file) for figure in given if figure.verdict != "absent"}
    known = [
        figure
        for figure in given
        if figure.verdict != "absent" or (figure.limit, figure.file) not in measured
    ]
    missing = [
        Figure(limit, file, "", "", "not measured")
        for limit, file in files.items()
        if not any(figure.limit == limit and figure.verdict != "absent" for figure in known)
    ]
    order = list(files)
    return sorted(
        known + missing,
        key=lambda figure: order.index(figure.limit) if figure.limit in order else len(order),
    )


def to_markdown(figures: Iterable[Figure]) -> str:
    """Return a table in Markdown, with columns that line up in plain text too."""
    rows = [("limit", "file", "asked", "measured", "verdict")]
    rows += [tuple(asdict(figure).values()) for figure in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines) + "\n"


def to_json(figures: Iterable[Figure], about: Mapping[str, object]) -> str:
    """Return the figures and what is known about the run they come from."""
    return json.dumps({**about, "figures": [asdict(figure) for figure in figures]}, indent=2) + "\n"
