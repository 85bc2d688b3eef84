"""A job's id, before it is part of any path."""

from __future__ import annotations

import uuid

import pytest

from jobworker.errors import InvalidArgument
from jobworker.ids import parse_job_id

JOB = "5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"


def test_uuid_as_it_is_written_is_an_id():
    for job_id in (JOB, str(uuid.uuid4())):
        assert parse_job_id(job_id) == job_id


@pytest.mark.parametrize(
    "text",
    [
        *(".", "..", f"../{JOB}", f"{JOB}/..", f"{JOB}\0", f"{JOB}\n", f" {JOB}", f"{{{JOB}}}"),
        *(JOB.upper(), JOB.replace("-", ""), f"urn:uuid:{JOB}", JOB[:-1], "ü" * 36),
    ],
)
def test_everything_else_is_refused_and_shown(text: str):
    with pytest.raises(InvalidArgument, match="is not a job id") as refusal:
        parse_job_id(text)
    assert repr(text) in str(refusal.value)
    assert refusal.value.field == "job_id"


def test_empty_id_is_called_empty():
    with pytest.raises(InvalidArgument, match="job_id: is empty"):
        parse_job_id("")


def test_megabyte_is_not_repeated():
    with pytest.raises(InvalidArgument, match=r"1000000 characters") as refusal:
        parse_job_id("x" * 1_000_000)
    assert len(str(refusal.value)) < 200
