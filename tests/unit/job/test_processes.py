"""Waiting for a cgroup, whatever the kernel leaves out."""

import asyncio
import os

from jobworker.job.processes import wait_empty


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


async def test_a_cgroup_whose_end_is_not_announced_is_noticed_all_the_same():
    cgroup = Silent()
    try:
        await asyncio.wait_for(wait_empty(cgroup), 30)
    finally:
        cgroup.close()
    assert cgroup.looks == 2
