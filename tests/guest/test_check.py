"""`jobworker check` on a kernel that has everything: every limit holds, and nothing is missing."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from jobworker.auth import certs as development_certs
from jobworker.cgroups.controllers import CONTROLLERS
from jobworker.cgroups.limits import TABLE
from tests.support.processes import JOBWORKER

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def done(cgroup_root: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What the program said of a server with a cgroup root of its own."""
    certs = tmp_path / "certs"
    development_certs.init(certs)
    (tmp_path / "jobworker.toml").touch()
    settings = {
        "config": tmp_path / "jobworker.toml",
        "format": "json",
        "listen": "localhost:0",
        "cert": certs / "jobworker.crt",
        "key": certs / "jobworker.key",
        "ca": certs / "ca.crt",
        "log-dir": tmp_path / "log",
        "state-dir": tmp_path / "state",
        "run-dir": tmp_path / "run",
        "cgroup-root": cgroup_root,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return subprocess.run(
        [*JOBWORKER, "check", *flags], capture_output=True, text=True, check=False
    )


def test_every_limit_is_said_to_hold_and_the_root_is_named_with_the_reason(
    done: subprocess.CompletedProcess[str], cgroup_root: Path
):
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = {each["name"]: each for each in report["findings"] if each["section"] == "cgroups"}

    assert report["usable"]
    assert {name for name, each in found.items() if each["verdict"] == "ok"} == {
        "root",
        "hierarchy",
        *CONTROLLERS,
    }
    assert found["root"]["detail"].startswith(f"{cgroup_root}: ")
    assert found["root"]["detail"].partition(": ")[2]
    assert f"jobs will live in {cgroup_root}/jobworker" in found["hierarchy"]["detail"]
    for row in TABLE:
        assert f"--{row.limit.replace('_', '-')}" in found[row.controller]["detail"].split(", ")


def test_weights_that_no_disk_heeds_are_noted_beside_io(done: subprocess.CompletedProcess[str]):
    cgroups = [each for each in json.loads(done.stdout)["findings"] if each["section"] == "cgroups"]
    names = [each["name"] for each in cgroups]

    note = cgroups[names.index("io") + 1]

    assert (note["name"], note["verdict"]) == ("io.weight", "note")
    assert note["detail"].startswith("--io-weight has no effect: no disk has the scheduler bfq")
