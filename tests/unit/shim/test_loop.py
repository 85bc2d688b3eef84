"""The shim's event loop."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import loop as loop_module
from jobworker.shim.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_handler_is_called_when_its_descriptor_is_ready(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []
    loop.watch(pipe[0], select.EPOLLIN, lambda: seen.append(os.read(pipe[0], 1)))
    os.write(pipe[1], b"a")
    loop.run_once()
    assert seen == [b"a"]


def test_unwatched_descriptor_calls_nobody(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[str] = []
    loop.watch(pipe[0], select.EPOLLIN, lambda: seen.append("ready"))
    loop.unwatch(pipe[0])
    loop.unwatch(pipe[0])
    os.write(pipe[1], b"a")
    loop.call_at("end", time.monotonic(), lambda: seen.append("end"))
    loop.run_once()
    assert seen == ["end"]


def test_handler_that_another_has_removed_in_the_same_round_is_not_called(
    loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def handler(index: int) -> None:
        called.append(index)
        loop.unwatch(ends[1 - index][0])

    for index, (read_end, write_end) in enumerate(ends):
        loop.watch(read_end, select.EPOLLIN, lambda index=index: handler(index))
        os.write(write_end, b"a")
    loop.run_once()
    assert len(called) == 1
    assert capfd.readouterr().err == ""
    for end in ends:
        os.close(end[0])
        os.close(end[1])


def test_deadlines_are_called_once_in_their_time(loop: Loop) -> None:
    called: list[str] = []
    now = time.monotonic()
    loop.call_at("soon", now + 0.01, lambda: called.append("soon"))
    loop.call_at("late", now + 1000, lambda: called.append("late"))
    loop.call_at("never", now, lambda: called.append("never"))
    loop.cancel("never")
    loop.run_once()
    assert called == ["soon"]
    assert time.monotonic() >= now + 0.01


def test_deadline_of_the_same_key_replaces_the_earlier_one(loop: Loop) -> None:
    called: list[int] = []
    for number in range(3):
        loop.call_at("key", time.monotonic(), lambda number=number: called.append(number))
    loop.run_once()
    assert called == [2]


def test_deadline_of_a_year_can_be_waited_for(loop: Loop, pipe: tuple[int, int]) -> None:
    loop.call_at("year", time.monotonic() + 366 * 86400, lambda: None)
    loop.watch(pipe[0], select.EPOLLIN, lambda: None)
    os.write(pipe[1], b"a")
    loop.run_once()


def test_handler_that_fails_is_tried_again_and_harms_no_other(
    loop: Loop,
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop_module, "_RETRY", 0.01)
    calls: list[str] = []

    def handler() -> None:
        calls.append("handler")
        if len(calls) == 1:
            raise RuntimeError("out of order")

    loop.watch(pipe[0], select.EPOLLIN, handler)
    os.write(pipe[1], b"a")
    for _ in range(3):
        loop.run_once()
    assert calls == ["handler", "handler"]
    assert "out of order" in capfd.readouterr().err


def test_deadline_that_fails_comes_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_RETRY", 0.01)
    calls: list[int] = []

    def callback() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of order")

    loop.call_at("key", time.monotonic(), callback)
    loop.run_once()
    loop.run_once()
    assert len(calls) == 2
