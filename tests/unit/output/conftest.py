"""Real child processes that write to a real log, as jobs do, and what tests need to watch them."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker import output
from jobworker.output.inotify import Inotify
from tests.support.waiting import PATIENCE
from tests.support.waiting import until as wait_for_condition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


class Job:
    """A child process whose stdout and stderr are a log; ends as the job service ends a job."""

    def __init__(self, log_dir: Path, watcher: output.Watcher) -> None:
        self.id = str(uuid.uuid4())
        self.log_dir = log_dir
        self.watcher = watcher
        self.final_size: int | None = None

    @property
    def path(self) -> Path:
        return self.log_dir / self.id / "output"

    async def start(self, *argv: str) -> None:
        with output.Log.create(self.log_dir, self.id) as log:
            self.process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=log.fd, stderr=log.fd
            )

    async def tell(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def finish(self) -> int:
        self.process.stdin.close()
        await self.process.wait()
        return self.publish_end()

    def publish_end(self) -> int:
        self.final_size = self.path.stat().st_size
        self.watcher.wake(self.id)
        return self.final_size

    def follow(self, offset: int = 0) -> output.Follower:
        fd = output.open_for_reading(self.log_dir, self.id)
        return output.follow(
            fd,
            offset=offset,
            final_size=lambda: self.final_size,
            watch=self.watcher.watch(self.id, fd),
        )


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "log"
    output.prepare(directory)
    return directory


@pytest.fixture
async def watcher() -> AsyncIterator[output.Watcher]:
    with output.Watcher() as watcher:
        yield watcher


@pytest.fixture
async def start(
    log_dir: Path, watcher: output.Watcher
) -> AsyncIterator[Callable[..., Awaitable[Job]]]:
    jobs = []

    async def start(*argv: str, watcher: output.Watcher = watcher, log_dir: Path = log_dir) -> Job:
        job = Job(log_dir, watcher)
        jobs.append(job)
        await job.start(*argv)
        return job

    yield start
    for job in jobs:
        if job.process.returncode is None:
            job.process.kill()
            await job.process.wait()


@pytest.fixture
def python(start: Callable[..., Awaitable[Job]]) -> Callable[..., Awaitable[Job]]:
    """Start a job that runs Python code, which has os, sys and the `lines` of its stdin."""

    async def python(code: str, **kwargs: object) -> Job:
        prelude = "import os, sys\nlines = iter(sys.stdin.buffer.readline, b'')\n"
        return await start(sys.executable, "-ISc", prelude + code, **kwargs)

    return python


@pytest.fixture
def open_fds() -> Callable[[], set[str]]:
    """Return what this process has open: number and target of each descriptor."""
    gc.collect()  # what earlier tests left for later does not go while this one looks

    def open_fds() -> set[str]:
        found = set()
        for entry in Path("/proc/self/fd").iterdir():
            try:
                found.add(f"{entry.name} {entry.readlink()}")
            except FileNotFoundError:
                continue
        # Sockets are other tests' event loops, which go when they are collected.
        return {line for line in found if not line.endswith("/fd") and " socket:" not in line}

    return open_fds


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for a condition that nothing announces."""
    return wait_for_condition


@pytest.fixture
def in_time() -> Callable[[Awaitable[object]], Awaitable[object]]:
    """Await something that must not hang."""

    async def in_time(awaitable: Awaitable[object]) -> object:
        async with asyncio.timeout(PATIENCE):
            return await awaitable

    return in_time


@pytest.fixture
def collect() -> Callable[[output.Follower], Awaitable[bytes]]:
    """Read a follower to its end, checking that the chunks leave no gap."""

    async def collect(follower: output.Follower) -> bytes:
        data = bytearray()
        expected = follower.offset
        async with asyncio.timeout(PATIENCE):
            with follower as chunks:
                async for chunk in chunks:
                    assert chunk.offset == expected
                    assert chunk.data
                    data += chunk.data
                    expected += len(chunk.data)
        return bytes(data)

    return collect


@pytest.fixture
def refusing() -> type[Inotify]:
    """An inotify without room for a watch."""

    class Refusing(Inotify):
        def add(self, fd: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fd)

    return Refusing


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A log directory on tmpfs, which does not know RWF_NOWAIT."""
    directory = Path("/dev/shm") / f"jobworker-test-{uuid.uuid4()}"
    output.prepare(directory)
    yield directory
    for job in directory.iterdir():
        output.remove(directory, job.name)
    directory.rmdir()
