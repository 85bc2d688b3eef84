"""Jobs as a table for people: what is told of each in a line, and columns that line up. Pure."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Final

from jobworker.cli import units
from jobworker.cli.render import job_status
from jobworker.text import join, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobworker.rpc.v1.jobworker_pb2 import Job

HEADER: Final = ("JOB", "STATUS", "OWNER", "AGE", "NAME", "COMMAND")
MOMENTS: Final = "a time ago such as 90s, 2h, 3d, or a time such as 2026-01-31T08:00:00Z"
LONGEST_CELL: Final = 30
"""Columns that an owner, a name or a status may take."""
SHORTEST_COMMAND: Final = 20
"""Columns that are left for the command line, even where the terminal is too narrow."""
_GAP: Final = "  "


def parse_moment(text: str, now: float) -> float:
    """Return seconds since the epoch: ``2h`` before `now`, or a time as RFC 3339 writes it.

    A time without an offset is one of this machine's time zone. Raises ValueError.
    """
    if not text.isdigit():
        try:
            return max(now - float(units.parse_duration(text)), 0)
        except ValueError:
            pass
        try:
            return max(datetime.fromisoformat(text).timestamp(), 0)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{text!r} is not {MOMENTS}")


class Table:
    """Lines of a table that is written as it comes: columns grow, but never become narrower.

    `width` is how many columns there are for a line, None for as many as it takes.
    """

    def __init__(self, now: float, width: int | None) -> None:
        self._now = now
        self._width = width
        self._columns = [len(name) for name in HEADER[:-1]]
        self._begun = False

    def lines(self, jobs: Iterable[Job]) -> list[str]:
        """Return the lines of some jobs, those of the first ones with the header."""
        rows: list[Sequence[str]] = [self._row(job) for job in jobs]
        return self._lines(rows) if rows else []

    def end(self) -> list[str]:
        """Return what a table without jobs has."""
        return [] if self._begun else self._lines([])

    def _lines(self, rows: list[Sequence[str]]) -> list[str]:
        if not self._begun:
            rows = [HEADER, *rows]
        self._begun = True
        for row in rows:
            self._columns = [
                max(column, columns_of(cell))
                for column, cell in zip(self._columns, row[:-1], strict=True)
            ]
        return [self._line(row) for row in rows]

    def _row(self, job: Job) -> list[str]:
        age = units.format_age(self._now - job.created_at.ToNanoseconds() / 1e9)
        cells = [
            job.id,
            *(
                shortened(printable(text), LONGEST_CELL)
                for text in (
                    job_status(job, job.status),
                    job.owner,
                    age.removesuffix(" ago") if job.HasField("created_at") else "",
                    job.name,
                )
            ),
        ]
        return [cell or "-" for cell in cells] + [join([job.command.name, *job.command.args])]

    def _line(self, row: Sequence[str]) -> str:
        begin = "".join(
            cell + " " * (column - columns_of(cell)) + _GAP
            for cell, column in zip(row[:-1], self._columns, strict=True)
        )
        if self._width is None:
            return begin + row[-1]
        return begin + shortened(row[-1], max(self._width - columns_of(begin), SHORTEST_COMMAND))


def shortened(text: str, columns: int) -> str:
    """Return `text`, or as much of it as `columns` columns of a terminal hold, and "…"."""
    if columns_of(text[: columns + 1]) <= columns:
        return text
    taken = 0
    for index, char in enumerate(text):
        taken += columns_of(char)
        if taken > columns - 1:
            return f"{text[:index]}…"
    return text


def columns_of(text: str) -> int:
    """Return how many columns of a terminal printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )
