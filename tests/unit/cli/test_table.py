import time

import pytest

from jobworker.cli.table import Table, columns_of, parse_moment, shortened
from jobworker.rpc.v1 import jobworker_pb2 as pb

NOW = 1_800_000_000.0


def listed(command=("true",), status=pb.STATUS_RUNNING, age=7200, **fields):
    job = pb.Job(**{"id": "f" * 36, "owner": "user_alpha"} | fields)
    job.status.status = status
    job.command.name, *args = command
    job.command.args.extend(args)
    job.created_at.FromNanoseconds(round((NOW - age) * 1e9))
    return job


def test_jobs_are_lines_under_names():
    exited = listed(("sh", "-c", "exit 3"), pb.STATUS_EXITED, 90, name="nightly")
    exited.status.exit_code = 3
    assert Table(NOW, None).lines([exited, listed()]) == [
        "JOB                                   STATUS      OWNER       AGE  NAME     COMMAND",
        f"{'f' * 36}  exited (3)  user_alpha  1m   nightly  sh -c 'exit 3'",
        f"{'f' * 36}  running     user_alpha  2h   -        true",
    ]


def test_columns_never_become_narrower_and_the_names_are_written_once():
    table = Table(NOW, None)
    first = table.lines([listed(name="a long name")])
    (second,) = table.lines([listed(name="n")])
    assert second.index("true") == first[1].index("true") == first[0].index("COMMAND")


def test_an_empty_page_writes_nothing_and_an_empty_list_the_names():
    table = Table(NOW, None)
    assert table.lines([]) == []
    assert [line.split()[0] for line in table.end()] == ["JOB"]


def test_names_are_not_written_again_at_the_end():
    table = Table(NOW, None)
    table.lines([listed()])
    assert table.end() == []


@pytest.mark.parametrize("width", [120, 100, 60, 1])
def test_a_line_is_no_wider_than_the_terminal_but_for_what_a_command_needs(width):
    (line,) = Table(NOW, width).lines([listed(("sh", "-c", "x" * 500), name="n")])[1:]
    assert len(line) == max(width, line.index("sh -c") + 20)
    assert line.endswith("…")


def test_nothing_in_a_table_can_move_the_cursor():
    evil = "\x1b[2J\n\r\t"
    job = listed(("sh", evil), name=evil, owner=evil)
    assert all(line.isprintable() for line in Table(NOW, None).lines([job]))


def test_columns_line_up_under_wide_characters():
    lines = Table(NOW, None).lines([listed(name="作業"), listed(name="e\u0301te\u0301"), listed()])
    assert {columns_of(line[: line.index("true")]) for line in lines[1:]} == {
        lines[0].index("COMMAND")
    }


@pytest.mark.parametrize(
    ("text", "columns", "short"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("", 3, ""),
        ("作業作業", 4, "作…"),
        ("作業", 4, "作業"),
        ("ab", 1, "…"),
    ],
)
def test_text_is_cut_to_columns(text, columns, short):
    assert shortened(text, columns) == short


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - 7200),
        ("1d12h", NOW - 36 * 3600),
        ("90s", NOW - 90),
        ("9999d", NOW - 9999 * 86400),
        ("99999d", 0),
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15T09:00:00+01:00", NOW),
        ("2027-01-15 08:00:00.5Z", NOW + 0.5),
        ("1900-01-01T00:00:00Z", 0),
    ],
)
def test_a_moment_is_a_time_ago_or_a_time(text, moment):
    assert parse_moment(text, NOW) == moment


def test_a_time_without_an_offset_is_one_of_the_users_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert parse_moment("2027-01-15T09:00", NOW) == NOW
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text", ["", "yesterday", "90", "20270115", "2h ago", "12:00", "2027-13-01"]
)
def test_what_is_no_moment_is_refused_with_what_is(text):
    with pytest.raises(ValueError, match="such as 90s, 2h, 3d"):
        parse_moment(text, NOW)
