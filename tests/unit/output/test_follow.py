from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest

from jobworker import output
from jobworker.errors import ShuttingDown
from jobworker.output.budget import SLOW_AFTER
from jobworker.output.follow import (
    CHUNK_BUDGET,
    GROWTH,
    MAX_CHUNK,
    MIN_CHUNK,
    PROVEN,
    UNPROVEN,
)
from jobworker.output.follow import _budget as budget

ONE_BY_ONE = "for i in range(3000): os.write(1, bytes([i % 256]))"
PIECE_BY_PIECE = "for line in lines: os.write(1, os.urandom(int(line)))"
ECHO = "for line in lines: os.write(1, line.strip())"


async def take(chunks: output.Follower, length: int) -> bytes:
    """Read exactly `length` bytes."""
    data = b""
    while len(data) < length:
        data += (await anext(chunks)).data
    assert len(data) == length
    return data


@pytest.fixture
def looks(monkeypatch):
    """Count how often followers look for something to read."""
    count = 0
    lseek = os.lseek

    def counting(fd: int, position: int, whence: int) -> int:
        nonlocal count
        count += 1
        return lseek(fd, position, whence)

    monkeypatch.setattr(os, "lseek", counting)
    return lambda: count


class TestEveryByte:
    @pytest.mark.parametrize("power", range(21))
    async def test_whatever_the_size(self, start, collect, tmp_path, power):
        for size in (2**power - 1, 2**power, 2**power + 1):
            (tmp_path / "source").write_bytes(data := os.urandom(size))
            job = await start("cat", str(tmp_path / "source"))
            follower = asyncio.create_task(collect(job.follow()))
            assert await job.finish() == size
            assert await follower == data
            assert await collect(job.follow()) == data

    async def test_written_one_at_a_time(self, python, collect):
        job = await python(ONE_BY_ONE)
        follower = asyncio.create_task(collect(job.follow()))
        await job.finish()
        assert await follower == bytes(i % 256 for i in range(3000))

    async def test_for_fifty_followers_who_join_at_any_moment(self, python, collect):
        rng = random.Random(1)
        job = await python(PIECE_BY_PIECE)
        followers = []
        for _ in range(50):
            await job.tell(str(rng.choice((1, 100, 5000, 70000))))
            followers.append(asyncio.create_task(collect(job.follow())))
            for _ in range(rng.randrange(20)):
                await asyncio.sleep(0)
        await job.finish()
        expected = job.path.read_bytes()
        assert len(expected) > 500_000
        assert all(data == expected for data in await asyncio.gather(*followers))

    async def test_written_right_before_the_finish(self, start, collect):
        for number in range(30):
            job = await start("sh", "-c", f"read line; printf 'last words {number}'")
            follower = asyncio.create_task(collect(job.follow()))
            await job.finish()
            assert await follower == f"last words {number}".encode()

    async def test_written_by_a_grandchild_after_the_main_process_has_ended(
        self, start, in_time, tmp_path
    ):
        os.mkfifo(tmp_path / "fifo")
        job = await start("sh", "-c", f"(read _ <'{tmp_path}/fifo'; printf later) & printf first")
        with job.follow() as chunks:
            assert await in_time(take(chunks, 5)) == b"first"
            await job.process.wait()
            fifo = os.open(tmp_path / "fifo", os.O_RDWR)  # does not wait for the reader
            os.write(fifo, b"go\n")
            assert await in_time(take(chunks, 5)) == b"later"
            os.close(fifo)
            job.publish_end()
            assert not [chunk async for chunk in chunks]

    async def test_written_after_the_name_was_removed(self, python, in_time):
        job = await python(ECHO)
        with job.follow() as chunks:
            await job.tell("before")
            assert await in_time(take(chunks, 6)) == b"before"
            job.path.unlink()
            await job.tell("after")
            assert await in_time(take(chunks, 5)) == b"after"

    async def test_without_inotify(self, python, collect, refusing):
        with output.Watcher(refusing) as watcher:
            job = await python(ONE_BY_ONE, watcher=watcher)
            followers = [asyncio.create_task(collect(job.follow())) for _ in range(3)]
            await job.finish()
            for follower in followers:
                assert await follower == bytes(i % 256 for i in range(3000))

    async def test_where_the_file_system_cannot_tell_what_is_cached(
        self, python, collect, memory_dir
    ):
        job = await python(ONE_BY_ONE, log_dir=memory_dir)
        follower = asyncio.create_task(collect(job.follow()))
        await job.finish()
        assert await follower == bytes(i % 256 for i in range(3000))

    async def test_of_a_file_that_is_not_in_the_page_cache(self, start, collect, tmp_path):
        (tmp_path / "source").write_bytes(data := os.urandom(3 * MAX_CHUNK))
        job = await start("cat", str(tmp_path / "source"))
        await job.finish()
        fd = os.open(job.path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        assert await collect(job.follow()) == data


class TestInStep:
    async def test_a_follower_that_came_first_gets_the_first_byte_before_the_finish(
        self, python, in_time
    ):
        job = await python(ECHO)
        with job.follow() as chunks:
            first = asyncio.create_task(anext(chunks))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not first.done()
            await job.tell("a")
            assert await in_time(first) == output.Chunk(0, b"a")

    async def test_each_write_comes_as_soon_as_it_is_there(self, python, in_time):
        job = await python(ECHO)
        with job.follow() as chunks:
            for number in range(20):
                await job.tell(f"{number:04}")
                chunk = await in_time(anext(chunks))
                assert chunk == output.Chunk(number * 4, f"{number:04}".encode())

    async def test_small_writes_that_piled_up_are_one_chunk(self, python):
        job = await python(ONE_BY_ONE)
        await job.finish()
        with job.follow() as chunks:
            assert [len(chunk.data) async for chunk in chunks] == [3000]

    async def test_an_idle_follower_does_not_look_again(self, python, in_time, looks):
        job = await python(ECHO)
        with job.follow() as chunks:
            await job.tell("a")
            await in_time(anext(chunks))
            waiting = asyncio.create_task(anext(chunks))
            before = looks()
            for _ in range(1000):
                await asyncio.sleep(0)
            assert looks() - before <= 2  # the event of the first write may come after its bytes
            await job.tell("b")
            assert (await in_time(waiting)).data == b"b"


class TestOffset:
    async def test_a_follower_gets_exactly_the_rest(self, python, collect):
        job = await python(ONE_BY_ONE)
        await job.finish()
        whole = await collect(job.follow())
        for offset in (1, 2999, 3000):
            assert await collect(job.follow(offset)) == whole[offset:]

    async def test_beyond_the_end_waits_until_the_output_is_there(self, python, in_time):
        job = await python(ECHO)
        with job.follow(offset=6) as chunks:
            waiting = asyncio.create_task(anext(chunks))
            await job.tell("abcd")
            await in_time(job.watcher.watch(job.id, chunks._fd).changed(0))
            await job.tell("efgh")
            assert await in_time(waiting) == output.Chunk(6, b"gh")

    @pytest.mark.parametrize("offset", [4, 2**63, 2**64 - 1])
    async def test_beyond_the_end_of_a_finished_job_ends(self, start, collect, offset):
        job = await start("printf", "abc")
        await job.finish()
        assert await collect(job.follow(offset)) == b""

    async def test_beyond_the_end_ends_with_the_job(self, python, collect):
        job = await python(ECHO)
        follower = asyncio.create_task(collect(job.follow(100)))
        await job.tell("abc")
        await job.finish()
        assert await follower == b""


class TestFinalSize:
    async def test_nothing_beyond_it_is_sent(self, start, collect):
        job = await start("printf", "abcdef")
        await job.finish()
        job.final_size = 4
        assert await collect(job.follow()) == b"abcd"

    async def test_a_file_that_is_shorter_ends_where_it_ends(self, start, collect):
        job = await start("printf", "abcdef")
        await job.finish()
        job.final_size = 10
        assert await collect(job.follow()) == b"abcdef"

    async def test_known_right_after_it_was_asked_for_ends_the_wait(self, python, collect):
        job = await python(ECHO)

        def final_size() -> int | None:
            before, job.final_size = job.final_size, 0
            job.watcher.wake(job.id)
            return before

        fd = output.open_for_reading(job.log_dir, job.id)
        watch = job.watcher.watch(job.id, fd)
        assert await collect(output.follow(fd, final_size=final_size, watch=watch)) == b""

    async def test_once_known_covers_what_was_written_before(self, start, collect):
        job = await start("printf", "first")
        await job.process.wait()
        asked = 0

        def final_size() -> int | None:
            nonlocal asked
            asked += 1
            return None if asked == 1 else job.path.write_bytes(b"first, last")

        fd = output.open_for_reading(job.log_dir, job.id)
        watch = job.watcher.watch(job.id, fd)
        chunks = output.follow(fd, final_size=final_size, watch=watch)
        assert await collect(chunks) == b"first, last"


class TestTruncation:
    CODE = """
os.write(1, b"a" * 1000)
next(lines)
os.ftruncate(1, 0)
os.write(1, b"b" * 10)
next(lines)
os.write(1, b"c" * 1000)
next(lines)
"""

    async def test_a_follower_past_the_new_end_ends_with_the_job(self, python, in_time, until):
        job = await python(self.CODE)
        with job.follow() as chunks:
            await in_time(take(chunks, 1000))
            waiting = asyncio.create_task(anext(chunks, None))
            await job.tell("truncate")
            await until(lambda: job.path.stat().st_size == 10)
            assert not waiting.done()
            job.process.kill()
            await job.finish()
            assert await in_time(waiting) is None

    async def test_a_follower_goes_on_where_it_was_once_the_file_has_grown(self, python, in_time):
        job = await python(self.CODE)
        with job.follow() as chunks:
            await in_time(take(chunks, 1000))
            await job.tell("truncate")
            await job.tell("grow")
            assert await in_time(anext(chunks)) == output.Chunk(1000, b"c" * 10)

    async def test_a_follower_past_the_new_end_does_not_spin(self, python, in_time, until, looks):
        job = await python(self.CODE)
        with job.follow() as chunks:
            await in_time(take(chunks, 1000))
            waiting = asyncio.create_task(anext(chunks))
            await job.tell("truncate")
            await until(lambda: job.path.stat().st_size == 10)
            before = looks()
            for _ in range(1000):
                await asyncio.sleep(0)
            assert looks() - before <= 4  # the job has changed the file twice
            waiting.cancel()


class TestChunks:
    @pytest.fixture
    async def big(self, start):
        job = await start("head", "-c", str(16 * MAX_CHUNK), "/dev/zero")
        await job.finish()
        return job

    async def test_grow_with_what_was_taken(self, big):
        with big.follow() as chunks:
            sizes = [len(chunk.data) async for chunk in chunks]
        assert sizes[0] == MIN_CHUNK
        assert max(sizes) == MAX_CHUNK
        assert all(
            after <= max(MIN_CHUNK, sum(sizes[:i]) // GROWTH) for i, after in enumerate(sizes)
        )

    async def test_share_a_budget(self, big):
        others = [big.follow() for _ in range(256)]
        with big.follow() as chunks:
            sizes = [len(chunk.data) async for chunk in chunks]
        for other in others:
            other.close()
        assert CHUNK_BUDGET // 257 >= max(sizes) > CHUNK_BUDGET // 257 // 2

    async def test_stay_small_in_a_crowd_until_the_reader_is_known_to_read(self, big, monkeypatch):
        monkeypatch.setattr(budget, "_total", 64 * UNPROVEN * MIN_CHUNK)
        others = [big.follow() for _ in range(64)]
        with big.follow() as chunks:
            sizes = [len(chunk.data) async for chunk in chunks]
        for other in others:
            other.close()
        assert set(sizes[: PROVEN // MIN_CHUNK]) == {MIN_CHUNK}
        assert max(sizes) > MIN_CHUNK

    async def test_are_large_beside_a_crowd_that_stands_still(self, big, monkeypatch):
        others = [big.follow() for _ in range(256)]
        for other in others:
            await anext(other)
        later = time.monotonic() + SLOW_AFTER
        monkeypatch.setattr(budget, "_clock", lambda: later)
        with big.follow() as chunks:
            sizes = [len(chunk.data) async for chunk in chunks]
        for other in others:
            other.close()
        assert max(sizes) == MAX_CHUNK

    async def test_are_not_kept_from_others_by_who_waits_for_more(
        self, python, in_time, monkeypatch
    ):
        job = await python(ECHO)
        with job.follow() as chunks, job.follow():
            await job.tell("something")
            await in_time(take(chunks, len(b"something")))
            waiting = asyncio.create_task(anext(chunks))
            await asyncio.sleep(0)
            later = time.monotonic() + 2 * SLOW_AFTER
            monkeypatch.setattr(budget, "_clock", lambda: later)
            assert budget.size() == CHUNK_BUDGET // 2
            waiting.cancel()

    async def test_let_other_tasks_run(self, big):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        with big.follow() as chunks:
            count = len([chunk async for chunk in chunks])
        task.cancel()
        assert turns >= count - 1


class TestLeaving:
    """No way of leaving a follower leaves a descriptor or a watch."""

    @pytest.fixture
    async def job(self, python, until):
        job = await python(ECHO)
        await job.tell("hello")
        await until(lambda: job.path.stat().st_size == 5)
        return job

    @pytest.fixture
    async def nothing_left(self, watcher, open_fds, job):
        watcher.watch("keep", fd := os.open("/dev/null", os.O_RDONLY))  # opens inotify
        before = open_fds()

        def check() -> None:
            assert open_fds() <= before
            assert len(watcher) == 1

        yield check
        os.close(fd)

    async def test_cancelled_while_it_waits(self, job, nothing_left):
        async def consume() -> None:
            async for _ in job.follow():
                pass

        tasks = [asyncio.create_task(consume()) for _ in range(10)]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        nothing_left()

    async def test_cancelled_while_its_user_does_something_else(self, job, nothing_left):
        async def consume() -> None:
            with job.follow() as chunks:
                async for _ in chunks:
                    await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        nothing_left()

    async def test_left_early(self, job, nothing_left):
        async with aclosing(job.follow()) as chunks:
            async for _ in chunks:
                break
        nothing_left()

    async def test_read_to_the_end(self, job, nothing_left):
        await job.finish()
        chunks = job.follow()
        assert [chunk.data async for chunk in chunks] == [b"hello"]
        nothing_left()

    async def test_ended_by_the_watcher(self, job, watcher, in_time, open_fds):
        before = open_fds()
        chunks = job.follow()
        await in_time(anext(chunks))
        waiting = asyncio.create_task(anext(chunks))
        await asyncio.sleep(0)
        watcher.close()
        with pytest.raises(ShuttingDown):
            await in_time(waiting)
        assert len(watcher) == 0
        assert open_fds() <= before

    async def test_dropped_warns_and_closes(self, job, nothing_left):
        chunks = job.follow()
        with pytest.warns(ResourceWarning, match="unclosed"):
            del chunks
        nothing_left()

    async def test_a_closed_follower_is_at_its_end(self, job):
        chunks = job.follow()
        chunks.close()
        chunks.close()
        assert not [chunk async for chunk in chunks]

    async def test_cancelled_while_a_thread_reads_keeps_the_file_for_the_thread(
        self, python, memory_dir, until, open_fds
    ):
        job = await python(ECHO, log_dir=memory_dir)
        await job.tell("hello")
        await until(lambda: job.path.stat().st_size == 5)
        before = len(open_fds())
        busy = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocker = loop.run_in_executor(None, busy.wait)
        chunks = job.follow()
        waiting = asyncio.create_task(anext(chunks))
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        kept = any(f" {job.path}" in line for line in open_fds())
        busy.set()
        assert kept
        await blocker
        await until(lambda: not any(f" {job.path}" in line for line in open_fds()))
        assert len(open_fds()) <= before + 1  # inotify


class TestReadTo:
    async def test_sends_what_is_there_and_ends(self, python, collect, until):
        job = await python(ECHO)
        await job.tell("abc")
        await until(lambda: job.path.stat().st_size == 3)
        chunks = output.read_to(output.open_for_reading(job.log_dir, job.id))
        await job.tell("def")
        await until(lambda: job.path.stat().st_size == 6)
        assert await collect(chunks) == b"abc"

    @pytest.mark.parametrize(
        ("offset", "size", "expected"),
        [(0, 4, b"abcd"), (2, 4, b"cd"), (4, 4, b""), (5, 4, b""), (2, 99, b"cdef"), (9, 99, b"")],
    )
    async def test_reads_between_offset_and_size(self, start, collect, offset, size, expected):
        job = await start("printf", "abcdef")
        await job.finish()
        fd = output.open_for_reading(job.log_dir, job.id)
        assert await collect(output.read_to(fd, offset=offset, size=size)) == expected
