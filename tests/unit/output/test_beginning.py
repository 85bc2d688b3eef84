from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobworker.output import beginning


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def content(fd, data):
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    return len(data)


@pytest.mark.parametrize(
    ("data", "count", "expected"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 0, b""),
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"\n", 1, b"\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"no newline", 1, b"no newline"),
        (b"a\r\nb\xff\x00\r\n", 1, b"b\xff\x00\r\n"),
    ],
)
async def test_lines_are_counted_from_the_end(file, data, count, expected):
    end = content(file, data)
    assert data[await beginning.line_beginning(file, count, end) :] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(st.sampled_from([b"\n", b"a", b"bcd", b"\xff\n"]), max_size=40).map(b"".join),
    st.integers(0, 12),
    st.integers(1, 7),
)
def test_blocks_do_not_show(file, data, count, block):
    end = content(file, data)
    lines = data.splitlines(keepends=True) if b"\r" not in data else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginning, "BLOCK", block)
        offset = asyncio.run(beginning.line_beginning(file, count, end))
    assert data[offset:] == b"".join(lines[-count:] if count else [])


async def test_what_was_dropped_is_not_looked_at(file):
    end = content(file, b"a\nb\nc\n")
    assert await beginning.line_beginning(file, 9, end, first=3) == 3
    assert await beginning.line_beginning(file, 1, end, first=3) == 4


async def test_what_comes_after_the_end_does_not_count(file):
    content(file, b"a\nb\nc\n")
    assert await beginning.line_beginning(file, 1, 4) == 2


async def test_an_output_that_was_cut_meanwhile_ends_at_its_first_byte(file):
    content(file, b"")
    assert await beginning.line_beginning(file, 2, 100) == 0


async def test_a_hole_of_a_terabyte_is_not_read(file):
    size = 1 << 40
    os.ftruncate(file, size)
    os.pwrite(file, b"a\nb\n", size - 4)
    assert await beginning.line_beginning(file, 1, size) == size - 2
    assert await beginning.line_beginning(file, 2, size, first=size - (64 << 20)) == size - (
        64 << 20
    )


async def test_a_caller_that_is_cancelled_leaves_no_thread_with_the_descriptor(file):
    end = content(file, b"a\nb\n")
    held = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    blocker = loop.run_in_executor(None, held.wait)
    task = asyncio.create_task(beginning.line_beginning(file, 1, end))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    held.set()
    await blocker
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, 0),
        ({"last_bytes": 0}, 6),
        ({"last_bytes": 4}, 2),
        ({"last_bytes": 99}, 0),
        ({"last_bytes": 2**64 - 1}, 0),
        ({"last_lines": 1}, 4),
        ({"last_lines": 1, "size": 4}, 2),
        ({"last_bytes": 1, "size": 4}, 3),
        ({"last_bytes": 1, "size": 99}, 5),
        ({"last_lines": 9, "cap": 2}, 4),
        ({"last_bytes": 9, "cap": 2}, 4),
        ({"last_lines": 2**64 - 1}, 0),
    ],
)
async def test_the_last_of_an_output_begins_so_far_before_its_end(file, asked, expected):
    content(file, b"a\nb\nc\n")
    assert await beginning.find_beginning(file, **asked) == expected
