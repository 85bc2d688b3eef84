"""The trimmer's work, in a thread of the test.

On files of a file system with a name: of files in memory (memfd_create(2)) inotify tells nothing.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import trimmer
from jobworker.shim.trimmer import Trimmer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CAP = 64 * 1024
MUCH = 16 * CAP


class Shim:
    """What a trimmer has at the other end of its socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sock, self.its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outputs: list[int] = []
        self.trimmer = Trimmer(self.its)
        self._thread = threading.Thread(target=self.trimmer.run)

    def start(self) -> None:
        self._thread.start()

    def file(self, flags: int = os.O_RDWR) -> int:
        path = self.directory / str(len(self.outputs))
        self.outputs.append(os.open(path, flags | os.O_CREAT | os.O_APPEND))
        return self.outputs[-1]

    def output(self, key: str) -> int:
        fd = self.file()
        socket.send_fds(self.sock, [f"+ {key} {CAP}".encode()], [fd])
        return fd

    def forget(self, key: str) -> None:
        self.sock.send(f"- {key}".encode())

    def hang_up(self) -> None:
        self.sock.close()
        if self._thread.ident is not None:
            self._thread.join()
        self.its.close()
        if self.trimmer._inotify >= 0:
            os.close(self.trimmer._inotify)

    def close(self) -> None:
        self.hang_up()
        for fd in self.outputs:
            os.close(fd)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    shim = Shim(tmp_path)
    yield shim
    shim.close()


@pytest.fixture
def blind_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    """A shim whose trimmer gets no inotify instance from the kernel."""

    class NoInotify:
        def inotify_init1(self, _flags: int) -> int:
            return -1

    monkeypatch.setattr(trimmer, "_libc", NoInotify())
    shim = Shim(tmp_path)
    yield shim
    shim.close()


def is_cut(fd: int) -> bool:
    """Whether no more is left than the cap and what the trimmer lets stand."""
    status = os.fstat(fd)
    return status.st_size > 4 * CAP and status.st_blocks * 512 <= 3 * CAP


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_outputs_are_cut_as_they_grow(shim: Shim) -> None:
    shim.start()
    one, two = shim.output("one/0"), shim.output("two/0")
    for _ in range(3):
        for fd in (one, two):
            os.write(fd, b"x" * MUCH)
        wait_until(lambda: is_cut(one) and is_cut(two))
    assert os.pread(one, CAP, 3 * MUCH - CAP) == b"x" * CAP


def test_what_an_output_has_when_it_comes_is_cut(shim: Shim) -> None:
    fd = shim.file()
    os.write(fd, b"x" * MUCH)
    socket.send_fds(shim.sock, [f"+ old/0 {CAP}".encode()], [fd])
    shim.start()
    wait_until(lambda: is_cut(fd))


def test_without_inotify_outputs_are_looked_at_by_the_clock(blind_shim: Shim) -> None:
    blind_shim.start()
    fd = blind_shim.output("one/0")
    for _ in range(2):
        os.write(fd, b"x" * MUCH)
        wait_until(lambda: is_cut(fd))


def test_a_forgotten_output_is_let_go_and_grows(shim: Shim) -> None:
    gc.collect()  # what earlier tests left open would be closed while this one counts
    before = open_files()
    shim.start()
    gone, kept = shim.output("gone/0"), shim.output("kept/0")
    wait_until(lambda: open_files() == before + 4)
    shim.forget("gone/0")
    shim.forget("unknown/0")
    wait_until(lambda: open_files() == before + 3)
    os.write(gone, b"x" * MUCH)
    os.write(kept, b"x" * MUCH)
    wait_until(lambda: is_cut(kept))
    assert os.fstat(gone).st_blocks * 512 >= MUCH


def test_a_file_that_cannot_be_cut_keeps_no_other_from_it(
    shim: Shim, capfd: pytest.CaptureFixture[str]
) -> None:
    shim.start()
    other = shim.file()
    os.write(other, b"x" * MUCH)
    read_only = os.open(f"/proc/self/fd/{other}", os.O_RDONLY)
    socket.send_fds(shim.sock, [f"+ other/0 {CAP}".encode()], [read_only])
    os.close(read_only)
    fd = shim.output("good/0")
    os.write(fd, b"x" * MUCH)
    wait_until(lambda: is_cut(fd))
    assert capfd.readouterr().err.count("cannot free the head of an output") == 1


def test_it_sleeps_no_longer_than_the_fullest_output_has_room(shim: Shim) -> None:
    assert shim.trimmer._pause() == 0
    for room, pause in (
        (0, trimmer.SHORTEST_PAUSE),
        (trimmer.FASTEST // 50, 0.02),
        (trimmer.FASTEST, trimmer.LONGEST_PAUSE),
    ):
        fd = os.memfd_create("x")
        shim.trimmer._add("x/0", fd, CAP)
        shim.trimmer._files["x/0"].room = room
        assert shim.trimmer._pause() == pytest.approx(pause)
    shim.trimmer._forget("x/0")


def test_events_that_the_kernel_dropped_make_it_look_at_all(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        shim.trimmer._add(f"x/{number}", os.memfd_create("x"), CAP)
    monkeypatch.setattr(shim.trimmer, "_read_watches", lambda: {-1})
    assert len(shim.trimmer._grown()) == 2
    for number in range(2):
        shim.trimmer._forget(f"x/{number}")
