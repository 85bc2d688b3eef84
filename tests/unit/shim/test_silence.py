import contextlib
import os
import signal
import subprocess
import sys

import pytest

from jobworker.shim import silence, wire
from jobworker.shim.proc import read_stat
from jobworker.shim.silence import explain_silence
from tests.support.waiting import wait_until

# What a shim looks like from outside: its name, and the lock of its version that is open.
LIKE_A_SHIM = """
import os, signal, sys
from jobworker.shim.keeper import set_name
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
set_name(sys.argv[2])
if sys.argv[3:]:
    os.fork()
os.write(1, b"ready\\n")
signal.pause()
"""


@contextlib.contextmanager
def shim(run_dir, *, version=wire.VERSION, name="jobworker-shim", forks=()):
    command = [sys.executable, "-c", LIKE_A_SHIM, run_dir / wire.lock_name(version), name, *forks]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            for _ in range(1 + len(forks)):
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_stopped_shim_is_named_with_both_remedies(tmp_path):
    with shim(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: read_stat(process.pid).state == "T", "it is stopped")
        said = explain_silence(tmp_path, wire.VERSION)
        assert f"process {process.pid} is stopped (state T" in said
        assert f"kill -CONT {process.pid}" in said
        assert f"After kill -9 {process.pid} its jobs go on" in said


def test_a_shim_that_is_not_stopped_need_not_be_let_go_on(tmp_path):
    with shim(tmp_path) as process:
        wait_until(lambda: read_stat(process.pid).state == "S", "it sleeps")
        said = explain_silence(tmp_path, wire.VERSION)
        assert f"process {process.pid} is busy or hangs (state S)" in said
        assert "CONT" not in said


@pytest.mark.parametrize(
    "other", [{"version": wire.VERSION + 1}, {"name": "jobworker-trim"}], ids=str
)
def test_another_process_of_the_directory_is_not_taken_for_the_shim(tmp_path, other):
    with shim(tmp_path, **other):
        assert "cannot be found" in explain_silence(tmp_path, wire.VERSION)


def test_a_shim_of_another_directory_is_not_taken_for_this_ones(tmp_path):
    for name in ("ours", "others"):
        (tmp_path / name).mkdir()
    with shim(tmp_path / "others"):
        assert "cannot be found" in explain_silence(tmp_path / "ours", wire.VERSION)


def test_a_child_that_executes_nothing_yet_is_not_taken_for_the_shim(tmp_path, monkeypatch):
    with shim(tmp_path, forks=["one"]) as process:
        everybody = silence.processes()
        for order in (everybody, everybody[::-1]):
            monkeypatch.setattr(silence, "processes", lambda order=order: order)
            assert f"process {process.pid} " in explain_silence(tmp_path, wire.VERSION)


def test_a_run_directory_may_be_a_symbolic_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with shim(tmp_path / "real") as process:
        assert f"process {process.pid} " in explain_silence(tmp_path / "link", wire.VERSION)
