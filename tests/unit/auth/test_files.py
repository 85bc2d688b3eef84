"""Reading the files, and noticing that they have changed."""

import os

import pytest

from jobworker.errors import ConfigError


def test_all_three_are_read(write):
    files = write(ca=b"some CA")
    pems = files.read()
    assert pems.certificate == (files.certificate, files.certificate.read_bytes())
    assert pems.key == (files.key, files.key.read_bytes())
    assert pems.ca == (files.ca, b"some CA")
    assert pems.warnings == ()


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
def test_a_missing_file_is_named(write, name):
    files = write()
    path = getattr(files, name)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"cannot read the .* {path}: there is no such file"):
        files.read()


def test_a_file_that_cannot_be_read_is_named_with_the_reason(write):
    files = write()
    files.ca.unlink()
    files.ca.mkdir()
    with pytest.raises(ConfigError, match=f"{files.ca}: Is a directory"):
        files.read()


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_a_key_that_is_open_to_everybody_is_warned_about(write, mode):
    files = write()
    files.key.chmod(mode)
    (warning,) = files.read().warnings
    assert str(files.key) in warning
    assert f"{mode:04o}" in warning


def test_a_key_for_a_group_is_not_warned_about(write):
    files = write()
    files.key.chmod(0o640)
    assert files.read().warnings == ()


def test_untouched_files_keep_their_version(write):
    files = write()
    assert files.version() == files.version()


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_has_another_version(write, name):
    files = write()
    before = files.version()
    path = getattr(files, name)
    status = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)
    assert files.version() != before


def test_a_file_that_vanishes_has_another_version(write):
    files = write()
    before = files.version()
    files.key.unlink()
    assert files.version() != before


def test_a_pipe_is_not_a_file_that_can_be_read_again(write):
    files = write()
    assert files.regular()
    files.key.unlink()
    os.mkfifo(files.key)
    assert not files.regular()
