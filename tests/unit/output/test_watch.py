from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker import output
from jobworker.errors import ShuttingDown
from jobworker.output.inotify import Inotify
from jobworker.output.watch import PAUSE

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 0.01
"""Seconds between looks at what the kernel does not watch."""


class File:
    """A file that is watched and appended to."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)

    def append(self) -> None:
        os.write(self.fd, b"x")


@pytest.fixture
def make(tmp_path):
    files = []

    def make() -> File:
        files.append(File(tmp_path / str(len(files))))
        return files[-1]

    yield make
    for file in files:
        os.close(file.fd)


def _kernel_watches() -> int:
    """Count the watches of every inotify instance of this process (proc_pid_fdinfo(5))."""
    count = 0
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += entry.read_text().count("inotify wd:")
    return count


@pytest.fixture
def kernel_watches() -> Callable[[], int]:
    """Count those that there were not before the test."""
    gc.collect()
    before = _kernel_watches()
    return lambda: _kernel_watches() - before


def max_queued_events() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_write_wakes_who_waits(watcher, make, in_time):
    file = make()
    watch = watcher.watch("job", file.fd)
    waiter = asyncio.create_task(watch.changed(watch.version))
    await settle()
    assert not waiter.done()
    file.append()
    await in_time(waiter)


async def test_a_write_between_the_read_and_the_wait_is_not_missed(watcher, make, in_time):
    file = make()
    watch = watcher.watch("job", file.fd)
    noted = watch.version
    file.append()
    await in_time(watch.changed(noted))  # somebody else sees the event first
    await in_time(watch.changed(noted))


async def test_a_finish_between_the_read_and_the_wait_is_not_missed(watcher, make, in_time):
    watch = watcher.watch("job", make().fd)
    noted = watch.version
    watcher.wake("job")
    await in_time(watch.changed(noted))


async def test_a_wait_outlasts_events_of_other_jobs(watcher, make, in_time):
    mine, other = make(), make()
    watch = watcher.watch("mine", mine.fd)
    other_watch = watcher.watch("other", other.fd)
    waiter = asyncio.create_task(watch.changed(watch.version))
    other.append()
    await in_time(other_watch.changed(0))
    watcher.wake("other")
    await settle()
    assert not waiter.done()
    waiter.cancel()


async def test_waking_a_job_that_nobody_follows_is_nothing(watcher):
    watcher.wake("job")


async def test_followers_of_a_job_share_one_watch_until_the_last_has_gone(
    watcher, make, kernel_watches
):
    file = make()
    watches = [watcher.watch("job", file.fd) for _ in range(3)]
    assert (len(watcher), kernel_watches()) == (1, 1)
    for watch in watches[:2]:
        watch.close()
    assert (len(watcher), kernel_watches()) == (1, 1)
    watches[2].close()
    assert (len(watcher), kernel_watches()) == (0, 0)


async def test_a_job_can_be_watched_again(watcher, make, in_time):
    file = make()
    watcher.watch("job", file.fd).close()
    watch = watcher.watch("job", file.fd)
    file.append()
    await in_time(watch.changed(0))


async def test_a_thousand_waiters_are_woken_by_one_event_and_no_task(watcher, make, in_time):
    file = make()
    watch = watcher.watch("job", file.fd)
    waiters = [asyncio.create_task(watch.changed(watch.version)) for _ in range(1000)]
    await settle()
    tasks = asyncio.all_tasks()
    file.append()
    await in_time(watch.changed(0))
    assert watch.version == 1
    assert asyncio.all_tasks() <= tasks
    await in_time(asyncio.gather(*waiters))


async def test_a_cancelled_waiter_takes_nobody_with_it(watcher, make, in_time):
    file = make()
    watch = watcher.watch("job", file.fd)
    gone, stays = (asyncio.create_task(watch.changed(0)) for _ in range(2))
    await settle()
    gone.cancel()
    await settle()
    assert gone.cancelled()
    file.append()
    await in_time(stays)


async def test_a_writer_without_pause_costs_a_bounded_number_of_reads(
    python, log_dir, in_time, until
):
    reads = 0

    class Counting(Inotify):
        def read(self) -> list[int]:
            nonlocal reads
            reads += 1
            return super().read()

    loop = asyncio.get_running_loop()
    with output.Watcher(Counting) as watcher:
        job = await python("while True: os.write(1, b'x')", watcher=watcher)
        watch = watcher.watch(job.id, fd := output.open_for_reading(log_dir, job.id))
        await in_time(watch.changed(0))
        began, before = loop.time(), reads
        await until(lambda: watch.version >= 20)
        assert reads - before <= (loop.time() - began) / PAUSE + 1
        os.close(fd)


async def test_a_queue_that_overflowed_wakes_everybody(watcher, make, in_time):
    one, two, quiet = make(), make(), make()
    watcher.watch("one", one.fd)
    watcher.watch("two", two.fd)
    watch = watcher.watch("quiet", quiet.fd)
    for _ in range(max_queued_events() // 2 + 1):  # in turn, so that the kernel merges none
        one.append()
        two.append()
    quiet.append()
    await in_time(watch.changed(0))


class TestClosing:
    async def test_ends_every_wait(self, watcher, make, in_time):
        watch = watcher.watch("job", make().fd)
        waiter = asyncio.create_task(watch.changed(0))
        await settle()
        watcher.close()
        with pytest.raises(ShuttingDown):
            await in_time(waiter)
        with pytest.raises(ShuttingDown):
            await watch.changed(watch.version)
        watch.close()

    async def test_refuses_new_watches(self, watcher, make):
        watcher.close()
        with pytest.raises(ShuttingDown):
            watcher.watch("job", make().fd)

    async def test_leaves_no_descriptor_and_no_timer(self, make, open_fds, in_time):
        file = make()
        before = open_fds()
        with output.Watcher() as watcher:
            watch = watcher.watch("job", file.fd)
            assert len(open_fds()) == len(before) + 1
            file.append()
            await in_time(watch.changed(0))
        assert open_fds() <= before
        watcher.close()


class TestWithoutInotify:
    """The kernel refuses: followers are woken by a timer instead."""

    async def test_a_job_beyond_the_limit_of_watches_is_looked_at(
        self, make, in_time, caplog, refusing
    ):
        with (
            output.Watcher(refusing, poll_interval=SOON) as watcher,
            caplog.at_level(logging.WARNING),
        ):
            file = make()
            watch = watcher.watch("job", file.fd)
            await in_time(watch.changed(0))
            await in_time(watch.changed(1))
        assert "max_user_watches" in caplog.text

    async def test_it_is_said_once_while_it_lasts(self, make, caplog, refusing):
        with output.Watcher(refusing) as watcher, caplog.at_level(logging.WARNING):
            for number in range(5):
                watcher.watch(str(number), make().fd)
        assert len(caplog.records) == 1

    async def test_no_timer_runs_once_nobody_is_left(self, make, in_time, until, refusing):
        with output.Watcher(refusing, poll_interval=SOON) as watcher:
            watch = watcher.watch("job", make().fd)
            await in_time(watch.changed(0))
            watch.close()
            poll = watcher._poll
            await until(lambda: poll.when() < asyncio.get_running_loop().time())
            await settle()
            assert watcher._poll is poll

    async def test_without_a_descriptor_for_inotify_the_job_is_looked_at(
        self, make, in_time, kernel_watches
    ):
        with output.Watcher(poll_interval=SOON) as watcher:
            file = make()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            os.close(lowest := os.open("/", os.O_PATH))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                watch = watcher.watch("job", file.fd)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert kernel_watches() == 0
            await in_time(watch.changed(0))

            watcher.watch("next", file.fd)  # there are descriptors again
            assert kernel_watches() == 1
