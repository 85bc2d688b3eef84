"""Files that appear as a whole, with the right mode from their first instant."""

import fcntl
import os
import stat

import pytest

from jobworker.auth.directory import Directory


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_whatever_the_umask(tmp_path, mode):
    with Directory.locked(tmp_path, create=False) as directory:
        directory.write("a", b"content", mode=mode)
    assert (tmp_path / "a").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_file_is_never_open_to_others_while_it_is_written(tmp_path, monkeypatch):
    before = os.umask(0)
    modes = []
    real_open = os.open

    def watched(path, flags, mode=0o777, *, dir_fd=None):
        fd = real_open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return fd

    monkeypatch.setattr(os, "open", watched)
    try:
        with Directory.locked(tmp_path, create=False) as directory:
            directory.write("a.key", b"secret", mode=0o600)
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_a_file_is_replaced_in_one_step(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with (tmp_path / "a").open("rb") as old, Directory.locked(tmp_path, create=False) as directory:
        directory.write("a", b"new", mode=0o600)
        assert old.read() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    (tmp_path / "a").symlink_to(target)
    with Directory.locked(tmp_path, create=False) as directory:
        directory.write("a", b"new", mode=0o600)
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink()


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with Directory.locked(tmp_path, create=False) as directory, pytest.raises(IsADirectoryError):
        directory.write("a", b"new", mode=0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_directory_is_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        with Directory.locked(tmp_path / "parent" / "new", create=True):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "parent" / "new").stat().st_mode) == 0o700


def test_a_directory_that_exists_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    with Directory.locked(tmp_path, create=True):
        pass
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_directory_that_is_missing_is_not_made_unasked(tmp_path):
    with pytest.raises(FileNotFoundError), Directory.locked(tmp_path / "new", create=False):
        pass


def test_one_program_at_a_time_has_the_directory(tmp_path):
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        with Directory.locked(tmp_path, create=False), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(other)


def test_only_files_that_exist_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with Directory.locked(tmp_path, create=False) as directory:
        assert directory.read(["a", "b"]) == {"a": b"1"}
