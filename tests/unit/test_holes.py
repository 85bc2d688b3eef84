"""On files in memory (memfd_create(2)): tmpfs can free the head of a file on every kernel."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from jobworker import holes
from jobworker.holes import Capped

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = os.sysconf("SC_PAGE_SIZE")
CAP = 16 * BLOCK


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("output")
    yield fd
    os.close(fd)


def on_disk(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_a_punched_head_takes_no_space_and_moves_no_byte(fd: int) -> None:
    os.write(fd, b"x" * 4 * BLOCK)
    holes.punch(fd, 3 * BLOCK)
    assert (os.fstat(fd).st_size, on_disk(fd)) == (4 * BLOCK, BLOCK)
    assert os.pread(fd, 5 * BLOCK, 0) == bytes(3 * BLOCK) + b"x" * BLOCK


def test_a_probe_leaves_an_empty_file_as_it_is(fd: int) -> None:
    holes.probe(fd)
    assert (os.fstat(fd).st_size, on_disk(fd)) == (0, 0)


def test_what_the_kernel_refuses_is_an_oserror(fd: int) -> None:
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            holes.punch(reading, BLOCK)
    finally:
        os.close(reading)


def test_the_newest_bytes_stay_whatever_the_block_size(fd: int) -> None:
    data = os.urandom(CAP * 3 + 123)
    os.write(fd, data)
    Capped(fd, CAP).trim(slack=0)
    assert os.pread(fd, CAP, len(data) - CAP) == data[-CAP:]
    assert CAP <= on_disk(fd) <= CAP + 2 * BLOCK
    assert os.fstat(fd).st_size == len(data)


def test_nothing_is_freed_before_there_is_enough_to_free(fd: int) -> None:
    capped = Capped(fd, CAP)
    os.ftruncate(fd, CAP + capped.slack)
    assert (capped.trim(), capped.freed) == (0, 0)
    os.ftruncate(fd, CAP + capped.slack + 1)
    assert capped.trim() > 0
    assert capped.freed == capped.slack // BLOCK * BLOCK


def test_a_file_below_its_cap_is_left_alone_and_its_room_is_told(fd: int) -> None:
    os.write(fd, b"x" * BLOCK)
    capped = Capped(fd, CAP)
    assert capped.trim(slack=0) == CAP + capped.slack - BLOCK
    assert on_disk(fd) == BLOCK


def test_a_file_that_was_cut_off_and_begun_again_is_capped_anew(fd: int) -> None:
    capped = Capped(fd, CAP)
    os.ftruncate(fd, 100 * CAP)
    capped.trim(slack=0)
    os.ftruncate(fd, 0)
    capped.trim(slack=0)
    os.pwrite(fd, b"y" * CAP, 0)
    capped.trim(slack=0)
    assert os.pread(fd, CAP, 0) == b"y" * CAP
    os.pwrite(fd, b"y" * 3 * CAP, CAP)
    capped.trim(slack=0)
    assert on_disk(fd) == CAP


def test_the_slack_is_in_proportion_to_the_cap() -> None:
    slacks = [Capped(-1, cap).slack for cap in (64 * 1024, 1024**2, 1024**4)]
    assert slacks == [64 * 1024, 256 * 1024, 16 * 1024**2]
