"""How much a server keeps and lets run: the flags that say so, and what they come to."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import click

from jobworker.job.retention import DEFAULT_KEEP_JOBS, Retention
from jobworker.job.slots import RunningLimits
from jobworker.job.spec import LARGEST_SIZE, MIN_OUTPUT_MAX
from jobworker.rpc.streams import MAX_STREAMS_PER_USER
from jobworker.units import parse_count, parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

_UNBOUNDED: Final = ("none", "max")


class Bound(click.ParamType[int | Fraction | None]):
    """A size, a count or a time, of which there may be no more; None if a word says no bound."""

    def __init__(self, name: str, parse: Callable[[str], int | Fraction]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Fraction | None:
        """Read a value as it was written."""
        if value in _UNBOUNDED:
            return None
        try:
            bound = self._parse(value)
        except ValueError as error:
            self.fail(f"{error}; none means no bound", param, ctx)
        if not bound:
            self.fail(f"{value!r} would leave nothing; none means no bound", param, ctx)
        return bound


class Cap(Bound):
    """A cap on the output of jobs, in bytes; None for all of it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Fraction | None:
        """Read a value as it was written."""
        size = super().convert(value, param, ctx)
        if size is not None and size < MIN_OUTPUT_MAX:
            self.fail(f"{value!r} is too little; give 64K or more, or none", param, ctx)
        return None if size is None or size > LARGEST_SIZE else size


DURATION: Final = Bound("duration", parse_duration)
COUNT: Final = Bound("count", parse_count)
SIZE: Final = Bound("size", parse_size)
CAP: Final = Cap("size", parse_size)

FLAGS: Final[dict[str, tuple[Bound, str, str]]] = {
    "--keep-for": (DURATION, "30d", "How long a finished job and its output are kept."),
    "--keep-jobs": (
        COUNT,
        f"{DEFAULT_KEEP_JOBS}",
        "How many finished jobs are kept: those that ended last.",
    ),
    "--keep-bytes": (
        SIZE,
        "none",
        "How much disk finished jobs may take, as the file system counts it.",
    ),
    "--output-max": (
        CAP,
        "none",
        "How many bytes of a job's output are kept, the newest, unless it asks for another cap.",
    ),
    "--max-running-jobs": (COUNT, "none", "How many jobs may run at a time."),
    "--max-running-jobs-per-user": (
        COUNT,
        "none",
        "How many jobs of one user may run at a time.",
    ),
    "--max-streams-per-user": (
        COUNT,
        f"{MAX_STREAMS_PER_USER}",
        "How many streams (output, samples, events) a user may have open at a time.",
    ),
}
"""Flag → what it takes, its default, its help."""


def take_retention(given: dict[str, Any]) -> Retention:
    """Take out of the values that were given, by the flags' names, what is said of retention."""
    keep_for = given.pop("keep_for")
    return Retention(
        keep_for=None if keep_for is None else float(keep_for),
        keep_jobs=given.pop("keep_jobs"),
        keep_bytes=given.pop("keep_bytes"),
    )


def take_running_limits(given: dict[str, Any]) -> RunningLimits:
    """Take out what is said of how many jobs may run."""
    return RunningLimits(
        total=given.pop("max_running_jobs"), per_user=given.pop("max_running_jobs_per_user")
    )
