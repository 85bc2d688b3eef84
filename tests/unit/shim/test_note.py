import errno
import os

import pytest

from jobworker.shim.note import (
    DIRECTORY,
    EndNote,
    note_name,
    note_names,
    read_note,
    remove_note,
    write_note,
)

NOTE = EndNote(
    boot_id="b",
    pid=12,
    start_time=345,
    exit_code=7,
    cgroup="/root/jobworker/the-job/nested",
    ended_at=1000.5,
    ended_boot=3.25,
)


def test_a_note_is_read_as_it_was_written(tmp_path):
    write_note(str(tmp_path), NOTE)
    assert list(note_names(str(tmp_path))) == ["12.345.json"]
    assert read_note(str(tmp_path), note_name(12, 345)) == NOTE
    assert (tmp_path / DIRECTORY).stat().st_mode & 0o777 == 0o700


def test_a_note_is_of_the_job_in_whose_cgroup_the_process_was(tmp_path):
    assert NOTE.is_of("the-job")
    assert not NOTE.is_of("the")


def test_what_a_newer_keeper_adds_is_ignored():
    assert EndNote.from_json({**NOTE.to_json(), "version": 9, "more": []}) == EndNote(
        **{**NOTE.to_json(), "version": 9}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"exit_code": None},
        {"signal": 9},
        {"exit_code": 256},
        {"exit_code": None, "signal": 0},
        {"pid": "12"},
        {"boot_id": None},
        {"ended_boot": -1},
        {"executed": 1},
    ],
)
def test_what_cannot_be_a_note_is_refused(change):
    with pytest.raises(ValueError, match=r"."):
        EndNote.from_json({**NOTE.to_json(), **change})


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"pid": 12}'])
def test_a_file_that_is_no_note_is_refused(tmp_path, text):
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / "12.345.json").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_note(str(tmp_path), "12.345.json")


def test_a_note_under_the_name_of_another_process_is_refused(tmp_path):
    write_note(str(tmp_path), NOTE)
    (tmp_path / DIRECTORY / NOTE.name).rename(tmp_path / DIRECTORY / "13.345.json")
    with pytest.raises(ValueError, match="another"):
        read_note(str(tmp_path), "13.345.json")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / NOTE.name).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        read_note(str(tmp_path), NOTE.name)


def test_nothing_is_left_of_a_note_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda _fd, data: len(data) - 1)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_note(str(tmp_path), NOTE)
    assert list(note_names(str(tmp_path))) == []


def test_without_a_directory_there_are_no_notes(tmp_path):
    assert list(note_names(str(tmp_path))) == []
    assert read_note(str(tmp_path), "1.1.json") is None
    remove_note(str(tmp_path), "1.1.json")
