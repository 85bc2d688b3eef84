"""What tests of jobs share: an empty registry, and registries that do not wait for the disk."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobworker.job.registry import database
from jobworker.job.registry.store import Store

SYNCHRONOUS_OFF = "PRAGMA synchronous = OFF"


@pytest.fixture(autouse=True)
def settings_of_a_registry(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Let SQLite leave it to the kernel when a registry reaches the disk; return its own settings.

    That a file outlives the power is nothing that a test here could see, and a thousand waits for a
    busy disk take longer than all the rest.
    """
    settings = database._SETTINGS
    hasty = tuple(each for each in settings if "synchronous" not in each)
    monkeypatch.setattr(database, "_SETTINGS", (SYNCHRONOUS_OFF, *hasty))
    return settings


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A registry without jobs."""
    with closing(Store.open(tmp_path / "jobs.db")) as store:
        yield store
