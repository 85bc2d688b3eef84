"""Paired measurements and their table: a figure means something beside another of the same run.

Subject and baseline are measured in turn, first the one and then the other, so that whatever else
the machine is doing meets both. Each pair gives one ratio.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio must be: at most `bound` if `at_most`, at least `bound` otherwise."""

    bound: float
    at_most: bool

    def met(self, ratio: float) -> bool:
        """Tell whether `ratio` is what it must be."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """Paired measurements of one thing, in `unit`."""

    what: str
    unit: str
    target: Target
    subject: tuple[float, ...]
    baseline: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Subject to baseline, pair by pair."""
        return [one / other for one, other in zip(self.subject, self.baseline, strict=True)]

    def row(self) -> str:
        """Return the figure as a row of the table."""
        ratios = self.ratios
        median = statistics.median(ratios)
        cells = (
            self.what,
            f"{statistics.median(self.subject):.3g} {self.unit}",
            f"{statistics.median(self.baseline):.3g} {self.unit}",
            f"{min(ratios):.2f} / **{median:.2f}** / {max(ratios):.2f}",
            str(self.target),
            "yes" if self.target.met(median) else "no",
        )
        return f"| {' | '.join(cells)} |"


def paired(
    what: str,
    unit: str,
    target: Target,
    *,
    subject: Callable[[], float],
    baseline: Callable[[], float],
    rounds: int,
) -> Figure:
    """Measure `subject` and `baseline` in turn, `rounds` times after one that does not count."""
    pairs = []
    for number in range(rounds + 1):
        print(f"{what}: round {number} of {rounds}", file=sys.stderr)
        if number % 2:
            one, other = subject(), baseline()
        else:
            other, one = baseline(), subject()
        pairs.append((one, other))
    ones, others = zip(*pairs[1:], strict=True)
    return Figure(what, unit, target, ones, others)


def markdown(figures: Iterable[Figure]) -> str:
    """Return the table: medians of both sides, and the ratio as minimum, median and maximum."""
    head = (
        "| what | jobworker | bare | ratio (min / median / max) | target | met |",
        "|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *(figure.row() for figure in figures)))
