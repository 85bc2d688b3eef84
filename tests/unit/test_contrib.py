"""The unit files say what the server understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from jobworker.cgroups.delegation import LEAF
from jobworker.daemon import main

CONTRIB = Path(__file__).parent.parent.parent / "contrib"
UNITS = sorted(CONTRIB.glob("*.service"))
SERVERS = [unit for unit in UNITS if "jobworker serve" in unit.read_text(encoding="utf-8")]


def settings(unit: Path) -> dict[str, str]:
    lines = unit.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


@pytest.mark.parametrize("unit", SERVERS, ids=lambda unit: unit.name)
def test_the_command_line_is_one_of_the_program(unit):
    _program, name, *arguments = shlex.split(settings(unit)["ExecStart"])
    command = main.cli.commands[name]
    command.make_context(name, ["--config", "/dev/null", *arguments])


def test_the_subgroup_is_the_leaf_that_the_server_looks_for():
    assert settings(CONTRIB / "jobworker-unprivileged.service")["DelegateSubgroup"] == LEAF


def test_the_server_uses_the_cgroup_of_the_other_unit_and_requires_it():
    server = settings(CONTRIB / "jobworker.service")
    root = Path(shlex.split(server["ExecStart"])[-1])
    assert (CONTRIB / root.name).exists()
    assert server["Requires"] == root.name
