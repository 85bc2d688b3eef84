"""The names of steps: one table, and each of them in the program at one place or more."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import jobworker
from jobworker import steps

PACKAGE = Path(jobworker.__file__).parent
NAMES = ("steps.reached", "reached")
PROCESSES = {"server": {"job", "rpc", "shim"}, "shim": {"shim"}, "child": {"shim"}}


@cache
def calls():
    """Return the name that each call of `steps.reached` gives, with the package it is in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "reached" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in NAMES:
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno} computes the name"
                found.append((name.value, path.relative_to(PACKAGE).parts[0]))
    return found


def test_the_table_names_the_steps_that_the_program_takes_and_no_others():
    assert {name for name, _ in calls()} == set(steps.TABLE)


def test_each_step_is_taken_at_one_place():
    assert [name for name, count in Counter(name for name, _ in calls()).items() if count > 1] == []


def test_a_step_is_named_for_the_process_that_takes_it():
    for name, package in calls():
        assert package in PROCESSES[name.split(".")[0]], name


def test_each_step_says_in_a_sentence_what_is_true_then():
    assert all(each[0].isupper() and each.endswith(".") for each in steps.TABLE.values())


def test_nobody_listens_in_production():
    assert steps._listener is None
    assert not [path for path in PACKAGE.rglob("*.py") if listens(path)]


def listens(path):
    if path.is_relative_to(PACKAGE / "testing"):
        return False
    return "steps.listen" in path.read_text(encoding="utf-8")


def test_a_listener_hears_of_each_step_until_it_is_taken_away():
    heard = []
    steps.listen(heard.append)
    steps.reached("server.start.recorded")
    steps.listen(None)
    steps.reached("server.start.sent")
    assert heard == ["server.start.recorded"]
