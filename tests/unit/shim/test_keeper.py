"""The keeper with a shim that does what a test says; what real jobs see is in tests/e2e/shim."""

import subprocess
import sys
from pathlib import Path

import pytest

import jobworker
from jobworker.shim import note as notes
from jobworker.shim import proc
from tests.support.waiting import PATIENCE

LIBRARY = str(Path(jobworker.__file__).parent.parent)

PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[2])
from jobworker.shim.keeper import leave_to_keeper
leave_to_keeper(sys.argv[1], "this boot")
if os.path.isdir(sys.argv[1]):
    with open(sys.argv[1] + "/shim", "w") as file:
        file.write(str(os.getpid()))

def child(action):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        action()
        os._exit(99)
    return pid

def run(script):
    return child(lambda: os.execv("/bin/sh", ["sh", "-c", script]))

def has_ended(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
"""


def keep(run_dir, shim):
    """Run a keeper to its end, with a shim that executes `shim`; return what they log."""
    command = [sys.executable, "-c", PROGRAM + shim, str(run_dir), LIBRARY]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True, text=True)
    return done.stderr


def read(run_dir):
    """Return the notes of all processes but the shim."""
    shim = int((run_dir / "shim").read_text())
    names = sorted(notes.note_names(str(run_dir)))
    found = [notes.read_note(str(run_dir), name) for name in names]
    return [note for note in found if note.pid != shim]


KILLED = "\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("script", "exit_code", "signum"), [("exit 6", 6, None), ("kill -9 $$", None, 9)]
)
def test_the_end_of_what_a_killed_shim_has_started_is_noted(tmp_path, script, exit_code, signum):
    keep(tmp_path, f"run({script!r})" + KILLED)
    (note,) = read(tmp_path)
    assert (note.exit_code, note.signal, note.boot_id) == (exit_code, signum, "this boot")
    assert note.executed


def test_what_did_not_execute_a_command_is_noted_as_such(tmp_path):
    keep(tmp_path, "child(lambda: os._exit(5))" + KILLED)
    (note,) = read(tmp_path)
    assert (note.exit_code, note.executed) == (5, False)


def test_several_ends_are_all_noted(tmp_path):
    keep(tmp_path, "for each in range(10): run(f'exit {each}')" + KILLED)
    assert sorted(note.exit_code for note in read(tmp_path)) == list(range(10))


def test_the_shims_own_end_is_noted_last(tmp_path):
    """So that whoever finds it knows that all others are there."""
    written = []
    keep(tmp_path, "for each in range(5): has_ended(run(f'exit {each}'))" + KILLED)
    for name in notes.note_names(str(tmp_path)):
        note = notes.read_note(str(tmp_path), name)
        written.append((note.ended_boot, note.pid))
    assert max(written)[1] == int((tmp_path / "shim").read_text())


def test_a_shim_that_leaves_takes_its_keeper_with_it(tmp_path):
    """What is left then is no job's: a shim leaves without any."""
    assert keep(tmp_path, "run('exit 3'); os._exit(0)") == ""
    assert read(tmp_path) == []


def test_a_shim_that_fails_has_died(tmp_path):
    keep(tmp_path, "run('exit 3'); os._exit(1)")
    assert [note.exit_code for note in read(tmp_path)] == [3]


def test_a_note_that_cannot_be_written_is_in_the_log(tmp_path):
    said = keep(tmp_path / "gone", "run('exit 3')" + KILLED)
    assert "cannot note how process" in said
    assert "'exit_code': 3" in said


def test_both_call_themselves_by_their_names(tmp_path):
    """Which is how a server tells a keeper's children from init's."""
    said = keep(
        tmp_path,
        "import time\n"
        "name = lambda pid: open(f'/proc/{pid}/comm').read().strip()\n"
        f"while name(os.getppid()) != {proc.KEEPER_NAME!r}: time.sleep(0.01)\n"
        "print(name(os.getpid()), file=sys.stderr, flush=True); os._exit(0)",
    )
    assert said.split() == [proc.SHIM_NAME]
