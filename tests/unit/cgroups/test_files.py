"""How cgroup files are opened, on ordinary files."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from jobworker.cgroups.files import Files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "memory.max"
    path.write_text("max\n")
    return path


def test_write_creates_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Files().write(str(tmp_path / "memory.nonsense"), "1")

    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(path: Path):
    link = path.with_name("link")
    link.symlink_to(path)

    for attempt in (Files().read, Files().open, lambda p: Files().write(p, "1")):
        with pytest.raises(OSError, match="link") as caught:
            attempt(str(link))
        assert caught.value.errno == errno.ELOOP
    assert path.read_text() == "max\n"


def test_descriptors_are_not_inherited(path: Path):
    for fd in (Files().open(str(path)), Files().open_directory(str(path.parent))):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_large_files_are_read_whole(path: Path):
    text = "".join(f"{pid}\n" for pid in range(100_000))
    path.write_text(text)

    assert Files().read(str(path)) == text


def test_refused_write_names_file_and_text():
    with pytest.raises(OSError, match=r"cannot write '4096': .*'/dev/full'") as caught:
        Files().write("/dev/full", "4096")

    assert caught.value.errno == errno.ENOSPC


def test_refused_read_names_the_file(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match=f"cannot read: Is a directory: '{tmp_path}'"):
        Files().read(str(tmp_path))


def test_open_file_is_read_from_its_start_each_time(path: Path):
    fd = Files().open(str(path))
    try:
        assert Files().read_again(fd) == "max\n"
        path.write_text("4096\n")
        assert Files().read_again(fd) == "4096\n"
    finally:
        os.close(fd)


def test_only_directories_are_children(path: Path):
    (path.parent / "nested").mkdir()
    (path.parent / "link").symlink_to(path.parent)

    assert Files().children(str(path.parent)) == ["nested"]


def test_directory_that_may_not_be_written_to_is_known_before():
    directory = tempfile.mkdtemp(prefix="jobworker-test-")
    user = os.geteuid()
    try:
        Path(directory).chmod(0o555)
        if user == 0:  # to whom nothing is forbidden
            Files().check_writable(directory)
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=directory):
            Files().check_writable(directory)
    finally:
        os.seteuid(user)
        Path(directory).rmdir()
