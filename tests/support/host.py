"""Hosts that have run out of something, or whose clock jumps: for the server and its shim alone.

Nothing of the machine is changed: a program that wraps ``jobworker`` answers in the kernel's place.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_WRAPPER = """
from jobworker.shim import start
from jobworker.daemon.main import main
begin, _, rest = start.program().rpartition("from jobworker.shim.main ")
text = begin + "exec(" + repr({shim!r}) + "); from jobworker.shim.main " + rest
start.program = lambda: text
exec({server!r})
main()
"""

_CLOCK = """
import time
real, real_ns = time.time, time.time_ns
def offset():
    with open({path!r}) as file:
        return float(file.read() or 0)
time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + int(offset() * 1e9)
"""

_NO_INOTIFY = """
import os
from jobworker.output import inotify
def refuse(*arguments):
    raise OSError({number}, os.strerror({number}))
inotify.Inotify.{method} = refuse
"""


def wrapped(*, server: str = "", shim: str = "") -> tuple[str, ...]:
    """Return a program that is ``jobworker`` after these statements, and so is its shim."""
    return (sys.executable, "-c", _WRAPPER.format(server=server, shim=shim))


def with_clock(offset: Path) -> tuple[str, ...]:
    """Return the program with a clock that is as many seconds wrong as the file `offset` says."""
    offset.touch()
    clock = _CLOCK.format(path=str(offset))
    return wrapped(server=clock, shim=clock)


def without_inotify(method: str, number: int) -> tuple[str, ...]:
    """Return the program with a kernel that refuses `Inotify.<method>` with that errno."""
    return wrapped(server=_NO_INOTIFY.format(method=method, number=number))


@contextlib.contextmanager
def small_file_system(directory: Path, *, size: int = 1 << 20, files: int = 1000) -> Iterator[None]:
    """Mount a file system with room for so many bytes and files at `directory`, which is made."""
    directory.mkdir(mode=0o700)
    options = f"size={size},nr_inodes={files},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(path: Path) -> None:
    """Write to a file until the file system has no room for another byte."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _at_rest(pid: int) -> set[int]:
    """Return the descriptors that a process has open, once it has opened and closed none lately."""
    looks: list[set[int]] = []

    def same() -> bool:
        looks.append({int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()})
        return len(looks) >= 10 and all(look == looks[-1] for look in looks[-10:])

    wait_until(same, f"process {pid} came to rest")
    return looks[-1]


@contextlib.contextmanager
def few_descriptors(pid: int, spare: int = 0) -> Iterator[None]:
    """Keep a process from opening more than `spare` descriptors during the block.

    The limit is on the number of a descriptor, of which a new one gets the lowest (getrlimit(2)).
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = _at_rest(pid)
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, spare, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
