"""The audit log's lines, as a program reads them."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from jobworker.auth.audit import Audit
from jobworker.errors import ConfigError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.log"


@pytest.fixture
def audit(path):
    audit = Audit.open(path)
    yield audit
    audit.close()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_when_and_what_in_this_order(audit, path):
    audit.change("started", job_id="j", user="user_alpha")
    (line,) = lines(path)
    assert list(line)[:2] == ["time", "event"]
    assert line | {"time": ""} == {
        "time": "",
        "event": "started",
        "job_id": "j",
        "user": "user_alpha",
    }
    assert abs(datetime.fromisoformat(line["time"]) - datetime.now(UTC)) < timedelta(hours=1)


def test_what_is_empty_is_left_out(audit, path):
    audit.change("ended", job_id="j", user="", exit_code=0)
    assert set(lines(path)[0]) == {"time", "event", "job_id", "exit_code"}


@pytest.mark.parametrize("text", ["two\nlines", "\u202e", "\udcff", '"', "\x1b[2J"])
def test_whatever_a_name_holds_it_is_one_line_of_ascii(audit, path, text):
    audit.change("started", job_id="j", user=text)
    assert path.read_bytes().isascii()
    assert [line["user"] for line in lines(path)] == [text]


def test_what_is_no_json_is_written_as_python_shows_it(audit, path):
    audit.change("started", job_id="j", what={1, 2})
    assert lines(path)[0]["what"] == "{1, 2}"


def test_a_log_that_is_moved_away_is_begun_anew(audit, path):
    audit.change("started", job_id="one")
    path.rename(f"{path}.1")
    audit.change("started", job_id="two")
    assert [line["job_id"] for line in lines(path)] == ["two"]


def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ConfigError, match="audit"):
        Audit.open(tmp_path)
