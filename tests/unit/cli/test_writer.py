from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from jobworker.cli.interrupts import interrupts
from jobworker.cli.session import Failure
from jobworker.cli.writer import AHEAD, FileWriter, Writer, writer

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


async def test_a_file_is_written_beside_the_caller_and_whole_after_flush(tmp_path):
    with (tmp_path / "output").open("wb") as file:
        out = writer(file.fileno(), 100)
        assert isinstance(out, FileWriter)
        for begin in range(0, len(DATA), 10_000):
            await out.take(memoryview(DATA)[begin : begin + 10_000])
        await out.flush()
        assert out.offset == 100 + len(DATA)
        out.close()
    assert (tmp_path / "output").read_bytes() == DATA


async def test_nothing_is_written_behind_what_could_not_be(tmp_path, monkeypatch):
    calls = []

    def fail_once(fd, data):
        calls.append(bytes(data))
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    monkeypatch.setattr(os, "write", fail_once)
    with (tmp_path / "output").open("wb") as file:
        out = FileWriter(file.fileno(), 0)
        await out.take(memoryview(b"one"))
        await out.take(memoryview(b"two"))
        with pytest.raises(Failure, match="No space left on device"):
            await out.flush()
        out.close()
    assert calls == [b"one"]
    assert out.offset == 0


async def test_what_waits_when_the_writer_is_closed_is_not_written(tmp_path, monkeypatch):
    held = threading.Event()
    write = os.write

    def wait_and_write(fd, data):
        held.wait()
        return write(fd, data)

    monkeypatch.setattr(os, "write", wait_and_write)
    with (tmp_path / "output").open("wb") as file:
        out = FileWriter(file.fileno(), 7)
        for _ in range(AHEAD):
            await out.take(memoryview(b"abc"))
        out._thread.shutdown(wait=False, cancel_futures=True)  # as closing does, which then waits
        held.set()
        out.close()
        written = (tmp_path / "output").read_bytes()
    assert out.offset == 7 + len(written)
    assert written in (b"", b"abc")


def test_what_is_no_file_is_written_at_once():
    reading, writing = os.pipe()
    try:
        assert type(writer(writing, 0)) is Writer
    finally:
        os.close(reading)
        os.close(writing)


async def test_of_many_pieces_that_could_not_be_written_the_first_alone_is_told_of(tmp_path):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    fd = os.open(tmp_path, os.O_RDONLY)
    out = FileWriter(fd, 0)
    try:
        for _ in range(AHEAD):
            await out.take(memoryview(b"abc"))
        with pytest.raises(Failure, match="cannot write the output"):
            await out.flush()
        out.close()
        await asyncio.sleep(0)  # asyncio hears of what the thread has done
        left = weakref.ref(out)
        del out
        gc.collect()
        assert left() is None
    finally:
        os.close(fd)
    assert told == []
