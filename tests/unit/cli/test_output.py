from __future__ import annotations

import os
import threading

import pytest

from jobworker.cli.output import write
from jobworker.cli.session import Failure

DATA = bytes(range(256)) * 4096  # 1 MiB; a pipe holds 64 KiB


def test_everything_is_written_to_a_pipe_that_is_non_blocking_and_full():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received = bytearray()

    def drain() -> None:
        with os.fdopen(reading, "rb") as pipe:
            while data := pipe.read(4096):
                received.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        written = sum(write(writing, DATA))
    finally:
        os.close(writing)
        reader.join()
    assert received == DATA
    assert written == len(DATA)


def test_a_reader_that_is_gone_is_a_broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(BrokenPipeError):
            list(write(writing, b"x"))
    finally:
        os.close(writing)


def test_a_full_disk_is_a_failure_that_says_so():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(Failure, match="No space left on device"):
            list(write(fd, b"x"))
    finally:
        os.close(fd)


def test_nothing_is_written_for_nothing():
    assert list(write(-1, b"")) == []
