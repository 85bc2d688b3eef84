"""An orphan on a fake cgroup, with a clock of the test's own."""

import asyncio
import os
import subprocess

import pytest

from jobworker.job.custody import orphan as module
from jobworker.job.custody.orphan import Orphan
from jobworker.job.spec import StopPolicy
from tests.support.waiting import until


class Clock:
    """CLOCK_BOOTTIME, as a test says."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Cgroup:
    id = "j"

    def __init__(self):
        self.asked = []
        self.kills = 0

    def ask_to_end(self, signum, _pidfd):
        self.asked.append(signum)

    def kill(self, _pidfd=None):
        self.kills += 1


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "boot_time", clock)
    monkeypatch.setattr(module, "_LONGEST_SLEEP", 0.01)
    return clock


@pytest.fixture
def process():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def cgroup():
    return Cgroup()


@pytest.fixture
async def orphan(clock, cgroup, process):
    orphan = Orphan(cgroup, os.pidfd_open(process.pid), policy=StopPolicy(signal=10, grace=5.0))
    yield orphan
    orphan.close()


async def settle():
    await asyncio.sleep(0.05)


async def test_a_time_limit_that_has_passed_is_carried_out_as_of_its_own_moment(
    orphan, cgroup, clock
):
    """Each new server takes the job over: none gives it another grace period."""
    orphan.limit(clock.now - 3.0)
    await until(lambda: cgroup.asked == [10])
    assert (orphan.timed_out, orphan.stopped, cgroup.kills) == (True, False, 0)
    clock.now += 1.9
    await settle()
    assert cgroup.kills == 0
    clock.now += 0.2
    await until(lambda: cgroup.kills == 1)


async def test_a_time_limit_whose_grace_has_passed_too_kills_at_once(orphan, cgroup, clock):
    orphan.limit(clock.now - 6.0)
    await until(lambda: cgroup.kills == 1)
    assert cgroup.asked == []


async def test_a_stop_kills_at_the_moment_that_was_accepted(orphan, cgroup, clock):
    orphan.accepted(15, clock.now + 2.0)
    assert (cgroup.asked, orphan.stopped) == ([15], True)
    await settle()
    assert cgroup.kills == 0
    clock.now += 2.1
    await until(lambda: cgroup.kills == 1)


async def test_another_stop_brings_the_kill_nearer_and_never_puts_it_off(orphan, cgroup, clock):
    orphan.stop(15, clock.now + 2.0)
    orphan.stop(15, clock.now + 100.0)
    clock.now += 2.1
    await until(lambda: cgroup.kills == 1)


async def test_time_that_the_host_was_suspended_counts(orphan, cgroup, clock):
    """The event loop's clock stands still then; so it is asked again now and then."""
    orphan.limit(clock.now + 100_000.0)
    await settle()
    clock.now += 100_001.0
    await until(lambda: cgroup.asked == [10])


async def test_a_job_that_has_ended_by_itself_is_neither_stopped_nor_timed_out(
    orphan, cgroup, clock, process
):
    process.kill()
    process.wait()
    orphan.stop(15, clock.now)
    orphan.limit(clock.now - 1.0)
    await settle()
    assert (orphan.stopped, orphan.timed_out) == (False, False)
    assert (cgroup.asked, cgroup.kills) == ([], 0)


async def test_a_job_that_ended_after_a_stop_was_accepted_was_stopped(clock, cgroup):
    orphan = Orphan(cgroup, None, policy=StopPolicy())
    orphan.accepted(15, clock.now + 2.0)
    assert orphan.stopped
    assert cgroup.asked == []
