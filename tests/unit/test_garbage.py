"""The collector while modules are loaded."""

from __future__ import annotations

import gc

import pytest

from jobworker import garbage


@pytest.fixture(autouse=True)
def _collector():
    yield
    gc.enable()  # What is frozen stays so: conftest.py wants that for all tests.


def test_what_is_there_when_the_collector_looks_again_is_never_looked_at():
    frozen = gc.get_freeze_count()
    garbage.put_off()
    assert not gc.isenabled()
    kept = [[] for _ in range(100)]
    garbage.look_from_now_on()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)


def test_nothing_is_kept_for_good_in_a_program_that_has_put_nothing_off():
    frozen = gc.get_freeze_count()
    garbage.look_from_now_on()
    assert gc.get_freeze_count() == frozen
