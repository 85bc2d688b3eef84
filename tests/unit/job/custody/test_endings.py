import os
import signal
import subprocess

import pytest

from jobworker.job import processes
from jobworker.job.custody import endings
from jobworker.job.custody.end_notes import EndNotes
from jobworker.job.custody.endings import Ending, Unknown, find_ending
from jobworker.job.record import Process
from jobworker.shim.note import EndNote, write_note
from jobworker.shim.proc import KEEPER_NAME, read_stat

BOOT = processes.boot_id()
GONE = Process(boot_id=BOOT, pid=2**22 - 1, start_time=1)


@pytest.fixture
def notes(tmp_path):
    return EndNotes(tmp_path)


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """A kernel that tells of a reaped process what a test says, and by default nothing."""
    statuses = []
    monkeypatch.setattr(
        "jobworker.job.custody.pidfd_info.wait_status", lambda _pidfd: next(iter(statuses), None)
    )
    return statuses


@pytest.fixture
def zombie():
    """A child that has ended with 7, and that nobody reaps."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield Process(boot_id=BOOT, pid=pid, start_time=read_stat(pid).start_time)
    os.waitpid(pid, 0)


def note_of(process, **how):
    given = {"exit_code": 3, "ended_at": 5.0, "ended_boot": 6.0, **how}
    return EndNote(boot_id=BOOT, pid=process.pid, start_time=process.start_time, **given)


async def test_the_note_is_believed_first(tmp_path, notes, kernel):
    kernel.append(9)
    write_note(str(tmp_path), note_of(GONE))
    assert await find_ending(GONE, 0, notes) == Ending(3, None, False, 5.0, 6.0)


async def test_the_kernel_is_asked_of_a_process_without_a_note(notes, kernel):
    kernel.append(signal.SIGSEGV | 0x80)
    assert await find_ending(GONE, 0, notes) == Ending(None, signal.SIGSEGV, True)
    kernel[:] = [7 << 8]
    assert await find_ending(GONE, 0, notes) == Ending(7, None, False)


async def test_a_process_that_nobody_reaps_tells_its_end(notes, zombie, monkeypatch):
    monkeypatch.setattr(endings, "_may_ask_for_status", lambda: True)
    stat = read_stat(zombie.pid)._replace(wait_status=7 << 8)
    monkeypatch.setattr(processes, "look", lambda _process: stat)
    assert await find_ending(zombie, None, notes) == Ending(7, None, False)


async def test_who_may_not_ask_takes_no_zero_for_an_answer(notes, zombie, monkeypatch):
    monkeypatch.setattr(endings, "_may_ask_for_status", lambda: False)
    monkeypatch.setattr(endings, "_REAPER_PATIENCE", 0.05)
    ending = await find_ending(zombie, 0, notes)
    assert isinstance(ending, Unknown)


async def test_the_keeper_is_waited_for_while_it_has_the_process(
    tmp_path, notes, zombie, monkeypatch
):
    """A note that comes while the zombie is there: the keeper writes it before it reaps."""
    asked = []

    def parent_name(_stat):
        asked.append(True)
        if len(asked) == 3:
            write_note(str(tmp_path), note_of(zombie))
        return KEEPER_NAME

    monkeypatch.setattr(processes, "parent_name", parent_name)
    assert (await find_ending(zombie, None, notes)).exit_code == 3
    assert len(asked) == 3


async def test_a_keeper_that_stands_still_is_not_waited_for_for_ever(notes, zombie, monkeypatch):
    monkeypatch.setattr(processes, "parent_name", lambda _stat: KEEPER_NAME)
    monkeypatch.setattr(endings, "_KEEPER_PATIENCE", 0.05)
    monkeypatch.setattr(endings, "_may_ask_for_status", lambda: False)
    assert isinstance(await find_ending(zombie, None, notes), Unknown)


@pytest.mark.parametrize(
    ("process", "pidfd", "why"),
    [
        (None, None, "main process is not known"),
        (Process(boot_id="another", pid=1, start_time=1), None, "host was restarted"),
        (GONE, None, "keeper was killed"),
        (GONE, 0, "Linux 6.15"),
    ],
)
async def test_what_nobody_knows_has_a_reason(notes, process, pidfd, why):
    ending = await find_ending(process, pidfd, notes)
    assert isinstance(ending, Unknown)
    assert why in ending.why


async def test_another_process_with_the_same_pid_is_not_asked(notes, monkeypatch):
    monkeypatch.setattr(endings, "_may_ask_for_status", lambda: True)
    with subprocess.Popen(["sleep", "1000"]) as other:  # noqa: ASYNC220
        process = Process(boot_id=BOOT, pid=other.pid, start_time=1)
        assert isinstance(await find_ending(process, None, notes), Unknown)
        other.kill()


def test_whether_the_kernel_tells_is_read_from_the_capabilities():
    assert isinstance(endings._may_ask_for_status(), bool)
