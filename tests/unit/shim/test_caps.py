"""The shim's side of the caps, with a trimmer that only listens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import caps
from jobworker.shim.caps import Caps
from jobworker.shim.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator

CAP = 64 * 1024
PATIENCE = 60.0


class Trimmers:
    """Every trimmer that was made: a process that waits, and the other end of its socket."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.socks: list[socket.socket] = []
        self.refusals = 0
        self._shims: list[tuple[int, socket.socket]] = []

    def fork(self) -> tuple[int, int, socket.socket]:
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError(11, "no more processes")
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        its.setblocking(False)
        process = subprocess.Popen(["sleep", "1000"])
        self.processes.append(process)
        self.socks.append(its)
        pidfd = os.pidfd_open(process.pid)
        self._shims.append((pidfd, ours))
        return process.pid, pidfd, ours

    def told(self, number: int = -1) -> list[str]:
        """Return the messages that one has got since the last look."""
        texts = []
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.socks[number], 4096, 4)
            except BlockingIOError:
                return texts
            if not message:
                return [*texts, "end"]
            for fd in fds:
                os.close(fd)
            texts.append(f"{message.decode()} {len(fds)}")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for sock in self.socks:
            sock.close()
        for pidfd, sock in self._shims:
            if sock.fileno() >= 0:  # else both were closed when the trimmer died
                os.close(pidfd)
                sock.close()


@pytest.fixture
def trimmers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trimmers]:
    trimmers = Trimmers()
    monkeypatch.setattr(caps, "_fork", trimmers.fork)
    monkeypatch.setattr(caps, "_RETRY", 0.01)
    yield trimmers
    trimmers.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def output() -> Iterator[int]:
    fd = os.memfd_create("output")
    yield fd
    os.close(fd)


def run_until(loop: Loop, condition: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        loop.call_at("test", time.monotonic() + 0.01, lambda: None)
        loop.run_once()


def test_there_is_no_trimmer_before_a_job_with_a_cap(
    loop: Loop, trimmers: Trimmers, output: int
) -> None:
    each = Caps(loop)
    each.add("free", [output], None)
    each.finish("free")
    assert each.trimmer is None
    assert trimmers.processes == []


def test_one_trimmer_is_told_of_every_output(loop: Loop, trimmers: Trimmers, output: int) -> None:
    each = Caps(loop)
    each.add("a", [output], CAP)
    each.add("b", [output, output], 2 * CAP)
    assert each.trimmer == trimmers.processes[0].pid
    assert trimmers.told() == [f"+ a/0 {CAP} 1", f"+ b/0 {2 * CAP} 1", f"+ b/1 {2 * CAP} 1"]
    each.finish("b")
    each.finish("b")
    assert trimmers.told() == ["- b/0 0", "- b/1 0"]


def test_at_its_end_an_output_is_cut_to_its_cap(
    loop: Loop, trimmers: Trimmers, output: int
) -> None:
    each = Caps(loop)
    each.add("a", [output], CAP)
    os.write(output, b"x" * (CAP + 4096))
    each.finish("a")
    assert os.fstat(output).st_blocks * 512 == CAP
    assert len(trimmers.told()) == 2


def test_an_output_that_cannot_be_cut_ends_all_the_same(
    loop: Loop, trimmers: Trimmers, output: int, capfd: pytest.CaptureFixture[str]
) -> None:
    del trimmers
    each = Caps(loop)
    read_only = os.open(f"/proc/self/fd/{output}", os.O_RDONLY)
    os.write(output, b"x" * 2 * CAP)
    each.add("a", [read_only], CAP)
    each.finish("a")
    os.close(read_only)
    assert "job a: cannot cut its output to its cap" in capfd.readouterr().err


def test_a_trimmer_that_dies_is_replaced_and_told_everything(
    loop: Loop, trimmers: Trimmers, output: int
) -> None:
    each = Caps(loop)
    each.add("a", [output], CAP)
    each.add("b", [output], CAP)
    os.kill(trimmers.processes[0].pid, signal.SIGKILL)
    run_until(loop, lambda: len(trimmers.processes) == 2)
    assert trimmers.told() == [f"+ a/0 {CAP} 1", f"+ b/0 {CAP} 1"]
    trimmers.processes[0].returncode = 0  # it was reaped by the shim's own hand


def test_a_trimmer_that_cannot_be_made_is_tried_again(
    loop: Loop, trimmers: Trimmers, output: int, capfd: pytest.CaptureFixture[str]
) -> None:
    trimmers.refusals = 2
    each = Caps(loop)
    each.add("a", [output], CAP)
    run_until(loop, lambda: each.trimmer is not None)
    assert trimmers.told() == [f"+ a/0 {CAP} 1"]
    assert "cannot start a trimmer, trying again" in capfd.readouterr().err


def test_a_trimmer_that_takes_nothing_holds_up_nobody_and_hears_it_later(
    loop: Loop, trimmers: Trimmers, output: int
) -> None:
    each = Caps(loop)
    jobs = [f"job-{number}" for number in range(500)]
    for job in jobs:
        each.add(job, [output], CAP)
    brief = os.dup(output)
    each.add("brief", [brief], CAP)
    each.finish(jobs[-1])
    each.finish("brief")
    os.close(brief)  # before the trimmer could be told of it
    told: list[str] = []

    def all_told() -> bool:
        told.extend(trimmers.told())
        return "- brief/0 0" in told

    run_until(loop, all_told)
    assert [text for text in told if text.startswith("+")][: len(jobs) - 1] == [
        f"+ {job}/0 {CAP} 1" for job in jobs[:-1]
    ]


def test_a_trimmer_without_work_leaves_in_the_end(
    loop: Loop, trimmers: Trimmers, output: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caps, "_LINGER", 0.05)
    each = Caps(loop)
    each.add("a", [output], CAP)
    each.finish("a")
    told: list[str] = []

    def hung_up() -> bool:
        told.extend(trimmers.told())
        return "end" in told

    run_until(loop, hung_up)
