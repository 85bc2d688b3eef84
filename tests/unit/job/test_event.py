from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.errors import InvalidArgument
from jobworker.job.event import EventType, JobEvent, Position
from jobworker.job.record import JobRecord
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, State

NUMBER = st.integers(0, 2**63 - 1)
RECORD = JobRecord(
    id="j1",
    owner="user_alpha",
    spec=JobSpec(command="true", name="n"),
    created_at=1.0,
    status=JobStatus(State.RUNNING),
    started_at=2.0,
)
TOKEN = Position("0123456789abcdef", 7, 9).token()


@given(st.binary(min_size=8, max_size=8), NUMBER, NUMBER)
def test_a_token_comes_back_as_the_position_it_was_made_of(registry, sequence, check):
    position = Position(registry.hex(), sequence, check)
    assert Position.parse(position.token()) == position


@pytest.mark.parametrize(
    "token",
    [
        "x",
        TOKEN[:-1],
        TOKEN + "0",
        TOKEN + "\n",
        " " + TOKEN[1:],
        TOKEN.upper(),
        "02" + TOKEN[2:],
        TOKEN.replace("7", "٧"),
        TOKEN[:18] + "f" * 16 + TOKEN[34:],
        TOKEN[:34] + "f" * 16,
    ],
)
def test_what_is_no_token_is_refused_by_the_name_of_its_field(token):
    with pytest.raises(InvalidArgument, match="resume_token: this is not a token") as refusal:
        Position.parse(token)
    assert refusal.value.field == "resume_token"


def test_an_event_is_of_the_job_as_its_record_has_it():
    event = JobEvent.of(EventType.PAUSED, RECORD, now=5.0, user="user_bravo")
    assert event == JobEvent(
        type=EventType.PAUSED,
        time=5.0,
        job_id="j1",
        owner="user_alpha",
        name="n",
        status=JobStatus(State.RUNNING),
        user="user_bravo",
    )


def test_a_beginning_and_an_end_were_when_the_record_says():
    ended = replace(RECORD, status=JobStatus(State.EXITED, 0), ended_at=3.0, output_size=0)
    assert JobEvent.of(EventType.STARTED, RECORD, now=5.0).time == 2.0
    assert JobEvent.of(EventType.ENDED, ended, now=5.0).time == 3.0
    assert JobEvent.of(EventType.STARTED, replace(RECORD, started_at=None), now=5.0).time == 5.0
