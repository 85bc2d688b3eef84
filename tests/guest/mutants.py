"""Shows that the tests can fail: for each limit, its tests with a server that does not write it.

Runs in the guest: ``make guest-mutants``. A limit whose tests all pass then is not proved.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups.limits import TABLE
from tests.guest.conftest import FIGURES

if TYPE_CHECKING:
    from jobworker.cgroups.limits import Row

EXPECTATIONS = (AssertionError, pytest.fail.Exception)
OPTIONS = ("-q", "--confcutdir=tests/guest", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")


@dataclass
class Mutant:
    """A server that does not write `limit` to `file`, and what its tests say of it."""

    limit: str
    file: str
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Tests that failed for another reason than that something was not as expected."""
    measured: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """What that shows."""
        if self.broken:
            return "broken"
        return "found" if self.failed else "SURVIVED" if self.passed else "NO TEST"


class Selection:
    """A plugin of pytest: only the tests that prove a limit, and what becomes of them."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out all other tests."""
        chosen = [item for item in items if self._proves(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Note how a test went."""
        if call.excinfo is None:
            if call.when == "call":
                self._mutant.passed.append(item.name)
        elif call.when == "call" and call.excinfo.errisinstance(EXPECTATIONS):
            self._mutant.failed.append(item.name)
        else:
            self._mutant.broken.append(item.name)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Note what was measured."""
        figures = session.config.stash.get(FIGURES, [])
        self._mutant.measured += [each.measured for each in figures if each.verdict != "holds"]

    def _proves(self, item: pytest.Item) -> bool:
        wanted = (self._mutant.limit, self._mutant.file)
        return any(mark.args in (wanted, wanted[:1]) for mark in item.iter_markers("proves"))


def tried(row: Row) -> tuple[Mutant, str]:
    """Run the tests of a limit with a server that does not write it; return what pytest said."""
    mutant = Mutant(row.limit, row.file)
    os.environ["GUEST_MUTANT"] = f"{row.limit} {row.file}"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        pytest.main([*OPTIONS, "--capture=no", "tests/guest"], plugins=[Selection(mutant)])
    return mutant, said.getvalue()


def to_markdown(mutants: list[Mutant]) -> str:
    """Return a table."""
    lines = [
        "| limit | file | without its write | measured then | tests that fail |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.limit} | {each.file} | {each.verdict} | {'; '.join(each.measured)} "
        f"| {', '.join(each.failed)} |"
        for each in mutants
    ]
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """Print it now: the console is all that the host sees."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Try the limits that are named on the command line, or all; 0 if none of them survives."""
    wanted = sys.argv[1:]
    mutants = []
    for row in TABLE:
        if wanted and row.limit not in wanted:
            continue
        mutant, said = tried(row)
        mutants.append(mutant)
        say(f"{row.limit} ({row.file}): {mutant.verdict}")
        if mutant.verdict != "found":
            say(said)
    output = Path(os.environ["GUEST_OUTPUT"])
    report = json.dumps([asdict(each) | {"verdict": each.verdict} for each in mutants], indent=2)
    (output / "guest-mutants.json").write_text(report + "\n", encoding="utf-8")
    (output / "guest-mutants.md").write_text(to_markdown(mutants), encoding="utf-8")
    say(to_markdown(mutants))
    return 0 if all(each.verdict == "found" for each in mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
