import errno
import os
import subprocess
import time

from jobworker.shim.proc import TICKS, children, processes, read_cgroup, read_stat


def test_this_process_is_described():
    stat = read_stat(os.getpid())
    assert (stat.pid, stat.parent, stat.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert not stat.ended
    assert not stat.ending
    assert stat.start_time / TICKS <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_process_that_is_not_there_is_none():
    assert read_stat(2**22 + 1) is None
    assert read_cgroup(2**22 + 1) == ""


def test_a_fork_has_not_executed_anything_and_a_program_has():
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        stat = read_stat(pid)
        assert (stat.ended, stat.ending, stat.executed) == (True, True, False)
        assert stat.wait_status in (7 << 8, 0)  # 0 to whom the kernel does not tell it
        assert pid in children(os.getpid())
    finally:
        os.waitpid(pid, 0)
    with subprocess.Popen(["sleep", "1000"]) as program:
        assert read_stat(program.pid).executed
        program.kill()


def test_a_name_may_hold_anything(tmp_path):
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as process:
        stat = read_stat(process.pid)
        process.kill()
    assert stat.parent == os.getpid()


def test_processes_that_we_may_not_look_at_are_left_out(monkeypatch):
    # As with hidepid=1 (proc(5)): they are listed, but nothing of them can be opened.
    monkeypatch.setattr(os, "open", _without_the_first(os.open))
    pids = {each.pid for each in processes()}
    assert os.getpid() in pids
    assert 1 not in pids


def _without_the_first(really_open):
    def open_other(path, *args, **kwargs):
        if path == "/proc/1/stat":
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        return really_open(path, *args, **kwargs)

    return open_other


def test_children_are_found_where_the_kernel_does_not_list_them(monkeypatch):
    listed = {each.pid for each in processes() if each.parent == os.getpid()}
    with subprocess.Popen(["sleep", "1000"]) as process:
        monkeypatch.setattr("builtins.open", _without_list(open))
        found = set(children(os.getpid()))
        process.kill()
    assert process.pid in found
    assert listed <= found | listed


def _without_list(really_open):
    def open_other(path, *args, **kwargs):
        if str(path).endswith("/children"):
            raise FileNotFoundError(path)
        return really_open(path, *args, **kwargs)

    return open_other
