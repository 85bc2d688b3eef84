"""Reading an output whose head is being freed: never a zero in the place of a byte."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from jobworker import holes, output
from jobworker.output.follow import MIN_CHUNK
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CAP = 64 * 1024


def content(begin: int, end: int) -> bytes:
    """Return bytes that tell where they are, and none of which is zero."""
    first = begin // 8
    words = b"".join(b"%07x\n" % word for word in range(first, end // 8 + 1))
    return words[begin - first * 8 : end - first * 8]


class Growing:
    """An output that the test writes."""

    def __init__(self, watcher: output.Watcher) -> None:
        self.fd = os.memfd_create("output")
        self.size = 0
        self.final_size: int | None = None
        self.watcher = watcher

    def write(self, count: int) -> None:
        os.write(self.fd, content(self.size, self.size + count))
        self.size += count

    def punch(self) -> None:
        holes.punch(self.fd, max(0, self.size - CAP) // 4096 * 4096)

    def end(self) -> None:
        self.final_size = self.size
        self.watcher.wake("job")

    def reading(self) -> int:
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY)

    def follow(self, offset: int = 0, cap: int | None = CAP) -> output.Follower:
        fd = self.reading()
        watch = self.watcher.watch("job", fd)
        return output.follow(
            fd, offset=offset, final_size=lambda: self.final_size, watch=watch, cap=cap
        )


@pytest.fixture
async def growing() -> AsyncIterator[Growing]:
    with output.Watcher() as watcher:
        growing = Growing(watcher)
        yield growing
        os.close(growing.fd)


async def collect(follower: output.Follower) -> list[tuple[int, int]]:
    """Read to the end, checking every byte; return from where to where there was output."""
    pieces: list[tuple[int, int]] = []
    async with asyncio.timeout(PATIENCE):
        with follower as chunks:
            async for chunk in chunks:
                end = chunk.offset + len(chunk.data)
                assert chunk.data == content(chunk.offset, end)
                if pieces and pieces[-1][1] == chunk.offset:
                    pieces[-1] = (pieces[-1][0], end)
                else:
                    assert not pieces or chunk.offset > pieces[-1][1]
                    pieces.append((chunk.offset, end))
    return pieces


async def test_a_follower_that_comes_late_begins_at_the_first_byte_kept(growing: Growing) -> None:
    growing.write(10 * CAP + 77)
    growing.punch()
    growing.end()
    assert await collect(growing.follow()) == [(9 * CAP + 77, 10 * CAP + 77)]
    assert await collect(growing.follow(9 * CAP + 100)) == [(9 * CAP + 100, 10 * CAP + 77)]


async def test_what_is_kept_does_not_depend_on_whether_the_head_was_freed_yet(
    growing: Growing,
) -> None:
    growing.write(10 * CAP)
    growing.end()
    assert await collect(growing.follow()) == [(9 * CAP, 10 * CAP)]


async def test_a_follower_that_falls_into_the_gap_goes_on_behind_it(growing: Growing) -> None:
    growing.write(1000)
    follower = growing.follow()
    assert (await anext(follower)).offset == 0
    growing.write(5 * CAP)
    growing.punch()
    growing.end()
    assert await collect(follower) == [(4 * CAP + 1000, 5 * CAP + 1000)]


async def test_what_was_dropped_while_it_was_read_is_left_out(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = [20_000, 70_000, 0]

    def slow(read: Callable[..., Any]) -> Callable[..., Any]:
        def grow_and_read(*arguments: Any) -> Any:
            # Between the look at the size and the read, the job goes on and the head is freed.
            if grown and (more := grown.pop(0)):
                growing.write(more)
                growing.punch()
            return read(*arguments)

        return grow_and_read

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, slow(getattr(os, name)))
    growing.write(CAP)
    follower = growing.follow()
    pieces = await asyncio.gather(collect(follower), _end_when(growing, grown))
    assert pieces[0][-1][1] == CAP + 90_000
    assert pieces[0][0][0] >= 20_000


async def _end_when(growing: Growing, grown: list[int]) -> None:
    while grown:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.001)
    growing.end()


async def test_reading_once_ends_where_the_output_ended_when_it_began(growing: Growing) -> None:
    growing.write(CAP + 10)
    reader = output.read_to(growing.reading(), cap=CAP)
    growing.write(100)
    assert await collect(reader) == [(110, CAP + 10)]


async def test_reading_once_ends_there_also_if_all_of_it_is_dropped_meanwhile(
    growing: Growing,
) -> None:
    growing.write(1000)
    reader = output.read_to(growing.reading(), cap=CAP)
    growing.write(2 * CAP)
    growing.punch()
    assert await collect(reader) == []
    assert reader.offset == 1000


async def test_what_somebody_adds_after_the_end_drops_nothing(growing: Growing) -> None:
    growing.write(2 * CAP)
    growing.end()
    size = growing.size
    growing.write(CAP)
    assert await collect(growing.follow()) == [(CAP, 2 * CAP)]
    assert await collect(output.read_to(growing.reading(), size=size, cap=CAP)) == [(CAP, 2 * CAP)]


async def test_without_a_cap_everything_is_kept(growing: Growing) -> None:
    growing.write(3 * CAP)
    growing.end()
    assert await collect(growing.follow(cap=None)) == [(0, 3 * CAP)]


async def test_what_was_dropped_does_not_count_as_taken(growing: Growing) -> None:
    cap = 100 * CAP
    growing.write(150 * CAP)
    growing.end()
    with growing.follow(cap=cap) as chunks:
        first, second = await anext(chunks), await anext(chunks)
    assert first.offset == 50 * CAP
    assert max(len(first.data), len(second.data)) <= MIN_CHUNK
