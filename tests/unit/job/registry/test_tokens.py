import base64
import uuid
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.errors import InvalidArgument
from jobworker.job.registry import tokens
from jobworker.job.registry.listing import JobFilter, Position
from jobworker.job.state import State

PLACE = Position(1_800_000_000.123456, str(uuid.UUID(int=7)))
ASKED = JobFilter(owner="user_alpha", labels={"a": "b", "c": "d"})
TOKEN = tokens.write(PLACE, ASKED)


@given(st.floats(allow_nan=False, allow_infinity=False), st.uuids())
def test_a_place_comes_back_as_it_went_in(created_at, job_id):
    place = Position(created_at, str(job_id))
    assert tokens.read(tokens.write(place, ASKED), ASKED) == place


def test_the_order_in_which_filters_are_given_does_not_matter():
    assert tokens.read(TOKEN, JobFilter(owner="user_alpha", labels={"c": "d", "a": "b"})) == PLACE


@pytest.mark.parametrize(
    "asked",
    [
        JobFilter(),
        JobFilter(owner="user_bravo", labels=ASKED.labels),
        JobFilter(owner="user_alpha", labels={"a": "b"}),
        JobFilter(owner="user_alpha", labels=ASKED.labels, name="n"),
        JobFilter(owner="user_alpha", labels=ASKED.labels, states=frozenset([State.LOST])),
        JobFilter(owner="user_alpha", labels=ASKED.labels, created_after=0.0),
        JobFilter(owner="user_alpha", labels=ASKED.labels, created_before=0.0),
    ],
    ids=str,
)
def test_a_token_of_other_filters_is_refused(asked):
    with pytest.raises(InvalidArgument, match=r"page_token.*same filters"):
        tokens.read(TOKEN, asked)


@pytest.mark.parametrize(
    "token", ["x", "ä", "1", "=", TOKEN[:-4], TOKEN + "AAAA", TOKEN.lower(), " " + TOKEN, "\0"]
)
def test_what_is_no_token_is_refused(token):
    with pytest.raises(InvalidArgument, match="page_token"):
        tokens.read(token, ASKED)


def test_a_token_of_a_version_that_writes_other_ones_is_refused(monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(tokens, "_VERSION", 2)
        token = tokens.write(PLACE, ASKED)
        assert tokens.read(token, ASKED) == PLACE
    with pytest.raises(InvalidArgument, match="page_token"):
        tokens.read(token, ASKED)


@given(st.integers(min_value=0, max_value=len(base64.urlsafe_b64decode(TOKEN)) * 8 - 1))
def test_a_token_with_any_bit_changed_is_refused(bit):
    data = bytearray(base64.urlsafe_b64decode(TOKEN))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidArgument):
        tokens.read(base64.urlsafe_b64encode(data).decode(), ASKED)


@given(st.text())
def test_no_text_makes_it_fail_in_another_way(token):
    with suppress(InvalidArgument):
        tokens.read(token, ASKED)
