import os
import signal

import pytest

from jobworker.job.custody.pidfd_info import wait_status


def ended(action):
    """Return the pid and the pidfd of a child that does `action` and has ended, not reaped yet."""
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(99)
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid, pidfd


@pytest.mark.parametrize(
    ("action", "status"),
    [
        (lambda: os._exit(7), 7 << 8),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 9),
    ],
)
def test_a_reaped_process_has_its_status_where_the_kernel_tells(action, status):
    pid, pidfd = ended(action)
    try:
        assert wait_status(pidfd) is None, "it has not been reaped"
        os.waitpid(pid, 0)
        assert wait_status(pidfd) in (status, None)
    finally:
        os.close(pidfd)


def test_what_is_no_pidfd_has_no_status(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert wait_status(file.fileno()) is None


def test_the_kernels_answer_is_read_as_linux_pidfd_h_lays_it_out(monkeypatch):
    """The request says EXIT (8) in its first 8 bytes; the answer has exit_code in its last 4."""

    def answer(_fd, request, buffer):
        assert request == 0xC040FF0B
        assert bytes(buffer) == b"\x08" + bytes(63)
        buffer[60:64] = (3 << 8).to_bytes(4, "little")

    monkeypatch.setattr("fcntl.ioctl", answer)
    assert wait_status(0) == 3 << 8
