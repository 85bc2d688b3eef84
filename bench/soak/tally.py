"""What the soak has seen, counted, and what was wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts by name, and violations in words: a soak is passed if there are none."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        """Count something that has happened."""
        self.counts[what] += number

    def violated(self, what: str) -> None:
        """Note that something is not as it must be."""
        self.violations.append(what)
        print(f"VIOLATION: {what}", flush=True)

    def report(self) -> str:
        """Return everything as text."""
        lines = [f"{what:<40} {number:>14,}" for what, number in sorted(self.counts.items())]
        lines += [f"{'jobs lost':<40} {len(self.lost):>14,}"]
        lines += [f"  {each}" for each in self.lost[:20]]
        lines += [f"{'violations':<40} {len(self.violations):>14,}"]
        lines += [f"  {each}" for each in self.violations[:50]]
        return "\n".join(lines)
