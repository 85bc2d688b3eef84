from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from jobworker.cli.interrupts import interrupts
from jobworker.cli.session import Failure
from jobworker.cli.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        writer = Writer(writing, 100)
        writer.write(DATA)
    finally:
        os.close(writing)
        reader.join()
    assert received == DATA
    assert writer.offset == 100 + len(DATA)


def test_a_reader_that_is_gone_is_a_broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(BrokenPipeError):
            Writer(writing, 0).write(b"x")
    finally:
        os.close(writing)


def test_a_full_disk_is_a_failure_that_says_so():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(Failure, match="No space left on device"):
            Writer(fd, 0).write(b"x")
    finally:
        os.close(fd)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let the program's handler have SIGINT, as main() does."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted_write(monkeypatch: pytest.MonkeyPatch, ctrl_c: None) -> None:
    """Let Ctrl-C come when bytes were written, and before anybody can have counted them."""
    write = os.write

    def write_and_interrupt(fd: int, data: bytes) -> int:
        count = write(fd, data)
        signal.raise_signal(signal.SIGINT)
        return count

    monkeypatch.setattr(os, "write", write_and_interrupt)


@pytest.mark.usefixtures("interrupted_write")
def test_ctrl_c_takes_no_count_of_written_bytes_with_it():
    reading, writing = os.pipe()
    writer = Writer(writing, 7)
    with pytest.raises(KeyboardInterrupt):
        writer.write(DATA)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert writer.offset == 7 + len(pipe.read()) > 7


@pytest.mark.usefixtures("interrupted_write")
def test_ctrl_c_lets_a_line_count_that_is_out():
    reading, writing = os.pipe()
    writer = Writer(writing, 7)
    with pytest.raises(KeyboardInterrupt):
        writer.write_as(b'{"output":"AAAA"}', 3)
    os.close(writing)
    os.close(reading)
    assert writer.offset == 10


@pytest.mark.usefixtures("interrupted_write")
def test_a_line_that_ctrl_c_has_cut_does_not_count():
    reading, writing = os.pipe()
    writer = Writer(writing, 7)
    with pytest.raises(KeyboardInterrupt):
        writer.write_as(DATA, 3)
    os.close(writing)
    os.close(reading)
    assert writer.offset == 7


def test_a_file_gets_everything(tmp_path):
    with (tmp_path / "output").open("wb") as file:
        out = Writer(file.fileno(), 100)
        for begin in range(0, len(DATA), 10_000):
            out.write(memoryview(DATA)[begin : begin + 10_000])
        assert out.offset == 100 + len(DATA)
    assert (tmp_path / "output").read_bytes() == DATA


def test_a_large_piece_for_a_file_is_one_write(tmp_path, monkeypatch):
    sizes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
    with (tmp_path / "output").open("wb") as file:
        Writer(file.fileno(), 0).write(DATA)
    assert sizes == [len(DATA)]
