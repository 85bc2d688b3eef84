"""exit.json."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import wire
from jobworker.shim.record import ExitRecordCorrupt, read_exit_record, write_exit_record
from jobworker.shim.wire import ExitRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECORD = ExitRecord(
    job_id="a", boot_id="b", pid=7, exit_code=3, started_at=1, ended_at=2, runtime=1, output_size=0
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_record_is_read_back_by_path_and_by_descriptor(tmp_path: Path, directory: int) -> None:
    write_exit_record(directory, RECORD)
    assert read_exit_record(tmp_path) == read_exit_record(directory) == RECORD


def test_only_the_record_is_left_and_only_its_owner_can_read_it(
    tmp_path: Path, directory: int
) -> None:
    write_exit_record(directory, RECORD)
    (file,) = tmp_path.iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("exit.json", 0o600)


def test_record_is_replaced_even_where_an_attempt_was_broken_off(
    tmp_path: Path, directory: int
) -> None:
    (tmp_path / ".exit.json.new").write_text("half")
    write_exit_record(directory, RECORD)
    later = ExitRecord(**{**RECORD.to_json(), "cgroup_error": "busy"})
    write_exit_record(directory, later)
    assert read_exit_record(directory) == later


def test_record_is_never_written_through_a_link(tmp_path: Path, directory: int) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "exit.json").symlink_to(target)
    (tmp_path / ".exit.json.new").symlink_to(target)
    write_exit_record(directory, RECORD)
    assert target.read_text() == "precious"
    assert not (tmp_path / "exit.json").is_symlink()


def test_record_is_never_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text(json.dumps(RECORD.to_json()))
    (tmp_path / "exit.json").symlink_to(tmp_path / "target")
    with pytest.raises(ExitRecordCorrupt, match="not a regular file"):
        read_exit_record(tmp_path)


def test_directory_is_never_read_through_a_link(tmp_path: Path, directory: int) -> None:
    write_exit_record(directory, RECORD)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError, match="link"):
        read_exit_record(tmp_path / "link")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_socket])
def test_what_is_no_file_is_no_record_and_holds_nobody_up(
    tmp_path: Path, directory: int, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "exit.json")
    with pytest.raises(ExitRecordCorrupt, match="not a regular file"):
        read_exit_record(directory)


def test_what_is_too_large_is_no_record(tmp_path: Path) -> None:
    text = json.dumps(RECORD.to_json())
    (tmp_path / "exit.json").write_text(text + " " * 1024 * 1024)
    with pytest.raises(ExitRecordCorrupt, match="more than 1048576 bytes"):
        read_exit_record(tmp_path)


def test_record_of_a_newer_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    newer = {**RECORD.to_json(), "version": wire.VERSION + 1, "mood": "good"}
    (tmp_path / "exit.json").write_text(json.dumps(newer))
    assert read_exit_record(tmp_path) == RECORD._replace(version=wire.VERSION + 1)


@pytest.mark.parametrize("version", [None, 0, -1, "1", True, 1.0])
def test_record_without_a_sound_version_is_corrupt(tmp_path: Path, version: object) -> None:
    (tmp_path / "exit.json").write_text(json.dumps({**RECORD.to_json(), "version": version}))
    with pytest.raises(ExitRecordCorrupt, match="version"):
        read_exit_record(tmp_path)


def test_record_without_any_version_is_corrupt(tmp_path: Path) -> None:
    unversioned = RECORD.to_json()
    del unversioned["version"]
    (tmp_path / "exit.json").write_text(json.dumps(unversioned))
    with pytest.raises(ExitRecordCorrupt, match="version"):
        read_exit_record(tmp_path)


@pytest.mark.parametrize("name", ["exit.json", ".exit.json.new"])
def test_directory_in_the_way_is_put_aside(tmp_path: Path, directory: int, name: str) -> None:
    (tmp_path / "exit.json.foreign-1").touch()
    (tmp_path / name / "precious").mkdir(parents=True)
    write_exit_record(directory, RECORD)
    assert read_exit_record(directory) == RECORD
    assert (tmp_path / "exit.json.foreign-2" / "precious").is_dir()


def test_write_that_fails_leaves_nothing_behind(tmp_path: Path, directory: int) -> None:
    for number in range(1, 100):
        (tmp_path / f"exit.json.foreign-{number}").touch()
    (tmp_path / "exit.json").mkdir()
    with pytest.raises(OSError, match="too much has been put"):
        write_exit_record(directory, RECORD)
    assert len(list(tmp_path.iterdir())) == 100
    assert not (tmp_path / ".exit.json.new").exists()


def test_job_without_a_record_has_none(tmp_path: Path) -> None:
    assert read_exit_record(tmp_path) is None
    assert read_exit_record(tmp_path / "missing") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job_id": "a"}', "\0" * 10])
def test_corrupt_record_is_said_to_be_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "exit.json").write_text(text)
    with pytest.raises(ExitRecordCorrupt, match="cannot tell how the job ended"):
        read_exit_record(tmp_path)
