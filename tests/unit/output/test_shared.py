from __future__ import annotations

import asyncio
import os
import sys

import pytest

from jobworker import output
from jobworker.output.chunk import Chunk
from jobworker.output.shared import Sharing, sharing
from tests.support.waiting import PATIENCE

follow = sys.modules["jobworker.output.follow"]  # the package has a function of this name

SIZE = 3 * 1024 * 1024


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch):
    """What is kept for the next follower stays for as long as that takes to come."""
    monkeypatch.setattr(sharing, "_hold", PATIENCE)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "output"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def reads(monkeypatch):
    """Count what is really read."""
    found = []
    read = follow.read_cached

    def counted(fd, offset, length, header):
        found.append((offset, length))
        return read(fd, offset, length, header)

    monkeypatch.setattr(follow, "read_cached", counted)
    return found


def opened(path):
    return os.open(path, os.O_RDONLY)


async def in_step(followers):
    """Take from each in turn; return what each got."""
    got = [b""] * len(followers)
    while True:
        chunks = [await anext(follower, None) for follower in followers]
        if chunks == [None] * len(followers):
            return got
        for number, chunk in enumerate(chunks):
            got[number] += chunk.data if chunk is not None else b""


async def test_followers_in_step_read_each_chunk_once(file, reads):
    followers = [output.read_to(opened(file), size=SIZE) for _ in range(5)]
    assert set(await in_step(followers)) == {file.read_bytes()}
    assert len(reads) == len(set(reads))
    assert sum(length for _, length in reads) == SIZE


async def test_followers_that_began_elsewhere_are_soon_in_step(file, reads):
    begins = [0, 5, 100_000, 1_000_001]
    followers = [output.read_to(opened(file), offset=begin, size=SIZE) for begin in begins]
    content = file.read_bytes()
    for follower, begin in zip(followers, begins, strict=True):
        chunks = [chunk async for chunk in follower]
        assert b"".join(chunk.data for chunk in chunks) == content[begin:]
        for chunk in chunks[1:]:
            length = len(chunk.data)
            assert chunk.offset % length == 0 or chunk.end == SIZE


async def test_a_single_follower_keeps_nothing(file):
    with output.read_to(opened(file), size=SIZE) as follower:
        await anext(follower)
        assert sharing.kept == 0


async def test_the_last_follower_leaves_nothing_kept(file):
    followers = [output.read_to(opened(file), size=SIZE) for _ in range(2)]
    await anext(followers[0])
    assert sharing.kept > 0
    followers[0].close()
    assert sharing.kept == 0
    followers[1].close()


async def test_a_header_goes_in_front_and_followers_with_another_one_share_nothing(file, reads):
    def header(offset, length):
        return f"{offset}+{length}:".encode()

    plain, framed = output.read_to(opened(file)), output.read_to(opened(file), header=header)
    one, other = await anext(plain), await anext(framed)
    assert other.data == header(0, len(one.data)) + one.data
    assert (other.offset, other.end) == (one.offset, one.end) == (0, len(one.data))
    assert len(reads) == 2
    plain.close()
    framed.close()


async def test_what_a_live_output_had_is_not_taken_for_the_final_one(file, watcher):
    sizes = [None]
    live = [
        output.follow(
            fd := opened(file), final_size=lambda: sizes[0], watch=watcher.watch("job", fd)
        )
        for _ in range(2)
    ]
    await anext(live[0])
    anew = os.urandom(SIZE)  # As long: nothing but the bytes themselves tells them apart.
    file.write_bytes(anew)
    final = [output.read_to(opened(file), size=SIZE) for _ in range(2)]
    for follower in final:
        chunk = await anext(follower)
        assert chunk.data == anew[: chunk.end]
    for follower in live + final:
        follower.close()


async def test_a_read_in_a_thread_is_shared_too(file, monkeypatch):
    def would_block(*_):
        raise BlockingIOError

    reads = []
    read = follow.read

    def counted(*arguments):
        reads.append(arguments[1:3])
        return read(*arguments)

    monkeypatch.setattr(follow, "read_cached", would_block)
    monkeypatch.setattr(follow, "read", counted)
    followers = [output.read_to(opened(file), size=SIZE) for _ in range(5)]
    chunks = await asyncio.gather(*(anext(follower) for follower in followers))
    assert len(reads) == 1
    assert {chunk.data for chunk in chunks} == {file.read_bytes()[: len(chunks[0].data)]}
    for follower in followers:
        follower.close()


def joined(shared, path):
    fd = opened(path)
    try:
        return shared.join(fd, "kind")
    finally:
        os.close(fd)


async def test_what_nobody_takes_is_dropped_after_a_while(file, until):
    shared = Sharing(hold=0.01)
    one = joined(shared, file)
    assert joined(shared, file) is one
    one.keep("a", Chunk(0, b"xyz"))
    assert one.find("a") == Chunk(0, b"xyz")
    await until(lambda: shared.kept == 0)
    assert one.find("a") is None


async def test_the_budget_holds_and_what_was_taken_last_stays(file):
    shared = Sharing(hold=3600, budget=6)
    one = joined(shared, file)
    joined(shared, file)
    for name in "ab":
        one.keep(name, Chunk(0, b"xyz"))
    one.find("a")
    one.keep("c", Chunk(0, b"xyz"))
    assert shared.kept == 6
    assert [name for name in "abc" if one.find(name)] == ["a", "c"]
    one.leave()
    one.leave()


def test_two_files_share_nothing_nor_do_a_live_output_and_a_final_one(tmp_path):
    shared = Sharing()
    files = []
    for name in ("a", "b"):
        (tmp_path / name).touch()
        files.append(os.open(tmp_path / name, os.O_RDONLY))
    try:
        one, same, other, final = (
            shared.join(fd, kind)
            for fd, kind in (
                (files[0], True),
                (files[0], True),
                (files[1], True),
                (files[0], False),
            )
        )
        assert one is same
        assert len({id(each) for each in (one, other, final)}) == 3
    finally:
        for fd in files:
            os.close(fd)
