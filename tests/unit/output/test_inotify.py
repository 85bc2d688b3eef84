from __future__ import annotations

import errno
import os

import pytest

from jobworker.output.inotify import Inotify


@pytest.fixture
def inotify():
    inotify = Inotify()
    yield inotify
    inotify.close()


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    yield fd
    os.close(fd)


def test_without_events_a_batch_is_empty(inotify, fd):
    inotify.add(fd)
    assert inotify.read() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.write(fd, b"x"),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: os.posix_fallocate(fd, 0, 10),
    ],
    ids=["write", "truncate", "fallocate"],
)
def test_every_change_of_size_is_an_event(inotify, fd, change):
    watch = inotify.add(fd)
    change(fd)
    assert inotify.read() == [watch]


def test_the_same_event_again_is_merged(inotify, fd):
    watch = inotify.add(fd)
    for _ in range(1000):
        os.write(fd, b"x")
    assert inotify.read() == [watch]


def test_a_file_that_lost_its_name_is_watched_on(inotify, fd, tmp_path):
    (tmp_path / "file").unlink()
    watch = inotify.add(fd)
    os.write(fd, b"x")
    assert inotify.read() == [watch]


def test_a_removed_watch_has_no_more_events(inotify, fd):
    watch = inotify.add(fd)
    inotify.remove(watch)
    inotify.read()  # IN_IGNORED
    os.write(fd, b"x")
    assert inotify.read() == []


def test_what_the_kernel_refuses_is_an_oserror(inotify, fd):
    with pytest.raises(OSError, match="Invalid argument") as raised:
        inotify.remove(123)
    assert raised.value.errno == errno.EINVAL
