"""Guests seen from the host: the harness is run as `make guest-test` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 100.0
"""Seconds for a guest that boots and does next to nothing; fewer than pytest's own limit."""


@pytest.fixture(scope="session")
def harness() -> Callable[..., list[str]]:
    """Return the command line that runs a shell script in a guest."""

    def command(script: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "guest", "run", *options, "--", "/bin/sh", "-c", script]

    return command


@pytest.fixture(scope="session")
def boot(
    harness: Callable[..., list[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a shell script in a guest, to the guest's end."""

    def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            harness(script, *options),
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the guest sees as well; /tmp is one of its own there."""
    parent = CHECKOUT / ".cache"
    parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix="test-") as name:
        yield Path(name)
