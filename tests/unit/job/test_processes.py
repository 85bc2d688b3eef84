"""Waiting for cgroups and keepers, whatever the kernel leaves out and whoever else is there."""

import asyncio
import contextlib
import os
import subprocess
import sys

from jobworker.job import processes
from jobworker.job.processes import keepers_settled, wait_empty
from jobworker.shim.proc import KEEPER_NAME, SHIM_NAME
from jobworker.shim.wire import LOG_NAME
from tests.support.waiting import PATIENCE

STUCK = f"""
import ctypes, os, sys
name = lambda text: ctypes.CDLL(None).prctl(15, text.encode(), 0, 0, 0)
if os.fork() == 0:
    name({SHIM_NAME!r})
    os._exit(1)
name({KEEPER_NAME!r})
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
os.write(2, b"stuck")
sys.stdin.read()
"""
"""A keeper that does not get on: it does not reap its shim."""


@contextlib.contextmanager
def stuck_keeper(run_dir):
    with (
        (run_dir / LOG_NAME).open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-ISc", STUCK],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.PIPE,
        ) as keeper,
    ):
        assert keeper.stderr.read(5) == b"stuck"
        yield
        keeper.stdin.close()


class Silent:
    """A cgroup that is emptied and removed at once: the kernel announces nothing of it."""

    def __init__(self):
        self.looks = 0
        self._unwritten = -1

    def open_events(self):
        read, self._unwritten = os.pipe()
        return read

    def events(self, _fd):
        self.looks += 1
        return {"populated": 1 if self.looks == 1 else 0}

    def close(self):
        os.close(self._unwritten)


async def test_a_cgroup_whose_end_is_not_announced_is_noticed_all_the_same(monkeypatch):
    monkeypatch.setattr(processes, "_LOOK_AGAIN", 0.02)
    cgroup = Silent()
    try:
        await asyncio.wait_for(wait_empty(cgroup), PATIENCE)
    finally:
        cgroup.close()
    assert cgroup.looks == 2


async def test_a_keeper_that_does_not_get_on_is_waited_for_but_not_for_ever(tmp_path, monkeypatch):
    with stuck_keeper(tmp_path), monkeypatch.context() as patch:
        patch.setattr(processes, "_SETTLING_PATIENCE", 0.05)
        assert not await keepers_settled(tmp_path)
    assert await keepers_settled(tmp_path)


async def test_another_servers_keeper_is_not_waited_for(tmp_path):
    (theirs := tmp_path / "theirs").mkdir()
    with stuck_keeper(theirs):
        assert await keepers_settled(tmp_path)
