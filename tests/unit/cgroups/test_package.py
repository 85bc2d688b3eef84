"""What the package exports, and what the shim pays for importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import jobworker
from jobworker import cgroups

SOURCE = str(Path(jobworker.__file__).parent.parent)


@pytest.mark.parametrize("name", cgroups.__all__)
def test_every_name_can_be_had(name: str):
    assert getattr(cgroups, name) is not None
    assert name in dir(cgroups)


def test_other_names_cannot():
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = cgroups.Nonsense


def test_shim_loads_no_more_than_it_needs():
    """Memory is what a clone costs: each of these would add its pages to every start of a job."""
    program = (
        f"import sys; sys.path.insert(0, {SOURCE!r}); before = set(sys.modules)\n"
        "import jobworker.cgroups.cgroup\n"
        "print(*(m for m in sys.modules if m not in before))"
    )

    loaded = subprocess.check_output([sys.executable, "-I", "-S", "-c", program], text=True)

    known = {"__future__", "errno", "select", "time"}
    known |= {"jobworker", "jobworker.cgroups", "jobworker.lazy"}
    known |= {f"jobworker.cgroups.{name}" for name in ("cgroup", "files", "parse")}
    known |= {"os", "stat", "_stat", "posixpath", "genericpath", "os.path", "abc", "_abc"}
    known |= {"_collections_abc"}
    assert set(loaded.split()) <= known
