"""Processes told apart across restarts: boot id, pid and start time; pidfds; waiting for both ends.

A pid is reused, a boot id, a pid and a start time together are not (proc(5), pidfd_open(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.shim.proc import KEEPER_NAME, SHIM_NAME, processes, read_stat
from jobworker.shim.wire import LOG_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.cgroups import Cgroup
    from jobworker.job.record import Process
    from jobworker.shim.proc import Stat

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_POLL: Final = 0.01
_SETTLING_PATIENCE: Final = 5.0
"""Seconds that a keeper may take to note what it inherits."""
_LOOK_AGAIN: Final = 0.5
"""Seconds between two looks at a cgroup of which the kernel says nothing."""


@functools.cache
def boot_id() -> str:
    """Return the identity of this boot of the host (random(4))."""
    return _BOOT_ID.read_text().strip()


def open_pidfd(process: Process) -> int | None:
    """Return a pidfd of `process`, or None if that very process is gone.

    The pidfd is opened first and the identity checked afterwards: what the pid means can change
    before the pidfd is open, not after.
    """
    if process.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if look(process) is not None:
        return pidfd
    os.close(pidfd)
    return None


def look(process: Process) -> Stat | None:
    """Return what /proc says of a process of this boot, or None if that very process is gone."""
    stat = read_stat(process.pid)
    return stat if stat is not None and stat.start_time == process.start_time else None


def boot_time() -> float:
    """Return seconds since boot, suspended ones included: nobody can set this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def parent_name(stat: Stat) -> str:
    """Return what a process's parent calls itself, or "" if it is gone."""
    parent = read_stat(stat.parent)
    return "" if parent is None else parent.name


async def keepers_settled(run_dir: Path) -> bool:
    """Return once the keeper of each shim of `run_dir` that died has noted what it inherited.

    A shim that was killed is reaped after that, so what is waited for is that none is left to be
    reaped by a keeper. False if one takes unreasonably long. Those of other servers do not matter:
    a keeper is told by the log that it writes to.
    """
    deadline = time.monotonic() + _SETTLING_PATIENCE
    while await asyncio.to_thread(_any_unsettled, run_dir):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def _any_unsettled(run_dir: Path) -> bool:
    log = str(run_dir.resolve() / LOG_NAME)
    return any(
        each.name == SHIM_NAME
        and each.ending
        and parent_name(each) == KEEPER_NAME
        and _output(each.parent) == log
        for each in processes()
    )


def _output(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended (pidfd_open(2): it is readable then)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def wait_readable(fd: int) -> None:
    """Return once `fd` is readable; for a pidfd, that is when its process has ended."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def wait_empty(cgroup: Cgroup) -> None:
    """Return once no process is left in `cgroup`, or the cgroup is gone."""
    await _wait_for_events(cgroup, lambda events: events.get("populated") != 1)


async def wait_frozen(cgroup: Cgroup, *, frozen: bool) -> None:
    """Return once all processes of `cgroup` are frozen, or not all are; or once there are none."""
    await _wait_for_events(
        cgroup,
        lambda events: events.get("frozen") == frozen or events.get("populated") != 1,
    )


async def _wait_for_events(cgroup: Cgroup, holds: Callable[[dict[str, int]], bool]) -> None:
    """Return once cgroup.events says what is waited for, or the cgroup is gone.

    The kernel announces each change of it by POLLPRI (cgroup-v2.rst), but not oftener than every 10
    ms: the last one is lost if the cgroup is removed before its turn (kernel/cgroup/cgroup.c,
    cgroup_file_notify), as a shim does with that of a short job. So it is also looked at now and
    then. An epoll instance is itself readable when what it watches is ready, which asyncio can wait
    for.
    """
    with contextlib.suppress(FileNotFoundError):
        events = cgroup.open_events()
        try:
            with select.epoll() as poll:
                poll.register(events, select.EPOLLPRI)
                while not holds(cgroup.events(events)):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN):
                            await wait_readable(poll.fileno())
                    poll.poll(0)
        finally:
            os.close(events)
