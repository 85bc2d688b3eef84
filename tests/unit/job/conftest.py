"""What tests of jobs share: an empty registry."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobworker.job.registry.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A registry without jobs."""
    with closing(Store.open(tmp_path / "jobs.db")) as store:
        yield store
