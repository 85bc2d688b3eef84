"""What a host has run out of."""

from __future__ import annotations

import errno

import pytest

from jobworker.errors import ResourceExhausted
from jobworker.exhaustion import TABLE, exhausted


@pytest.mark.parametrize("number", TABLE)
def test_what_has_run_out_is_said(number: int):
    error = exhausted("make the thing", number)
    assert isinstance(error, ResourceExhausted)
    assert str(error).startswith(f"cannot make the thing: {TABLE[number]} (")


@pytest.mark.parametrize("number", [None, 0, errno.ENOENT, errno.EAGAIN])
def test_other_errors_are_others_business(number: int | None):
    assert exhausted("make the thing", number) is None


def test_call_can_have_meanings_of_its_own():
    meanings = {errno.EAGAIN: "too many processes", errno.ENOSPC: "too many names"}
    for number, meaning in meanings.items():
        assert meaning in str(exhausted("start", number, meanings=meanings))
    assert TABLE[errno.ENOMEM] in str(exhausted("start", errno.ENOMEM, meanings=meanings))
