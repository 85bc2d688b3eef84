"""Which process is the main one: with processes, parents and notes as a test says."""

import time

import pytest

from jobworker.job import processes
from jobworker.job.custody import main_process
from jobworker.job.custody.main_process import find_main_process, identity, started_at
from jobworker.shim.note import EndNote
from jobworker.shim.proc import KEEPER_NAME, SHIM_NAME, TICKS, Stat

_FORKED_ONLY = 0x40


def stat(pid, start_time, *, session=None, flags=0, state="S", parent=1):
    return Stat(pid, "name", state, parent, session or pid, flags, start_time, 0)


def note(pid, start_time, *, executed=True):
    return EndNote(
        boot_id="b",
        pid=pid,
        start_time=start_time,
        exit_code=0,
        executed=executed,
        ended_at=1.0,
        ended_boot=1.0,
    )


class Host:
    """A job's cgroup, /proc and the notes."""

    id = "j"

    def __init__(self):
        self.stats = {}
        self.noted = []
        self.parents = {1: "init", 2: KEEPER_NAME, 3: SHIM_NAME}
        self.looks = 0

    def processes(self):
        self.looks += 1
        return list(self.stats)

    def of_job(self, job_id):
        assert job_id == self.id
        return self.noted

    def add(self, *stats):
        self.stats.update({each.pid: each for each in stats})

    async def find(self):
        return await find_main_process(self, self)


@pytest.fixture
def host(monkeypatch):
    host = Host()
    monkeypatch.setattr(main_process, "read_stat", host.stats.get)
    monkeypatch.setattr(processes, "parent_name", lambda stat: host.parents[stat.parent])
    return host


@pytest.mark.parametrize("parent", [2, 3])
async def test_the_eldest_that_a_keeper_or_a_shim_has_is_the_main_process(host, parent):
    host.add(stat(12, 7, parent=2), stat(11, 5, parent=parent), stat(13, 9, parent=2))
    assert (await host.find()).pid == 11


async def test_the_eldest_of_all_may_have_ended(host):
    host.add(stat(12, 7, parent=2))
    host.noted = [note(14, 8), note(11, 5)]
    assert (await host.find()).pid == 11


async def test_a_child_of_another_is_not_the_main_process(host):
    host.add(stat(11, 5, parent=1))
    assert await host.find() is None


async def test_a_descendant_that_leads_no_session_is_not_the_main_process(host):
    host.add(stat(12, 7, parent=2, session=11))
    assert await host.find() is None


async def test_one_that_is_about_to_execute_its_command_is_waited_for(host):
    host.add(stat(11, 5, parent=2, session=99, flags=_FORKED_ONLY))
    look = host.processes

    def execute_at_the_third_look():
        if host.looks == 2:
            host.add(stat(11, 5, parent=2))
        return look()

    host.processes = execute_at_the_third_look
    assert (await host.find()).executed
    assert host.looks == 3


async def test_one_that_never_executed_its_command_is_told_by_its_note(host):
    host.noted = [note(11, 5, executed=False)]
    assert not (await host.find()).executed


async def test_what_has_ended_and_is_not_noted_is_left_to_its_note(host):
    host.add(stat(11, 5, parent=2, state="Z"))
    assert await host.find() is None


def test_the_identity_is_pid_start_time_and_boot():
    process = identity(note(11, 5))
    assert (process.pid, process.start_time) == (11, 5)
    assert process.boot_id == processes.boot_id()


def test_the_time_of_the_start_comes_from_the_boots_clock():
    ticks = int((processes.boot_time() - 60) * TICKS)
    assert started_at(identity(note(11, ticks))) == pytest.approx(time.time() - 60, abs=5)
