"""A live job: real processes, and a cgroup that does as it is told."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups.parse import MalformedText
from jobworker.shim import live, loop, retry
from jobworker.shim.live import LiveJob
from jobworker.shim.loop import Loop
from jobworker.shim.spawn import Spawned
from jobworker.shim.wire import Launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeCgroup:
    """A cgroup that stays populated until the test empties it.

    Its cgroup.events is a socket, because the kernel offers EPOLLPRI for no regular file: urgent
    data stands for a change.
    """

    def __init__(self) -> None:
        self.full = False
        self.frozen_for_good = False
        self.calls: list[object] = []
        self.mains: list[int | None] = []
        self.problems: list[Exception] = []
        self.malformed: list[Exception] = []
        self._ends = _urgent_pair()

    def kill(self, main: int | None = None) -> None:
        self.calls.append("kill")
        self.mains.append(main)
        if self.problems:
            raise self.problems.pop()

    def ask_to_end(self, signum: int, main: int | None = None) -> None:
        self.calls.append(signum)
        self.mains.append(main)
        if self.frozen_for_good:
            error = OSError("cannot be signalled")
            error.add_note("nor could it be thawed")
            raise error

    def populated(self, fd: int | None = None) -> bool:
        if fd is not None and self.malformed:
            raise self.malformed.pop()
        return self.full

    def open_events(self) -> int:
        return os.dup(self._ends[0].fileno())

    def usage(self) -> dict[str, int]:
        if self.malformed:
            raise self.malformed.pop()
        return {"oom_kills": 1}

    def empty(self) -> None:
        self.full = False
        self.change()

    def change(self) -> None:
        self._ends[1].send(b"!", socket.MSG_OOB)

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _urgent_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
    return left, right


class Bench:
    """A job whose main process is a shell, a child of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop()
        self.cgroup = FakeCgroup()
        self.executed: list[LiveJob] = []
        self.ended: list[LiveJob] = []
        monkeypatch.setattr(live, "Cgroup", lambda _: self.cgroup)

    def start(self, script: str, report: bytes = b"", **options: object) -> LiveJob:
        status, write_end = os.pipe2(os.O_NONBLOCK)
        os.write(write_end, report)
        os.close(write_end)
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], {})
        launch = Launch(
            job_id="x",
            executables=["x"],
            argv=["x"],
            env={},
            working_directory="/",
            cgroup_path="/x",
            **options,  # type: ignore[arg-type]
        )
        with tempfile.TemporaryFile() as output:
            output.write(b"12345")
            output.flush()
            return LiveJob(
                launch,
                Spawned(pid, os.pidfd_open(pid), 0, status),
                outputs=[os.dup(output.fileno())],
                job_dir=-1,
                loop=self.loop,
                on_executed=self.executed.append,
                on_ended=self.ended.append,
            )

    def run_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.loop.run_once()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(monkeypatch)
    yield bench
    for job in bench.ended:
        job.close()
    bench.cgroup.close()
    bench.loop.close()


def test_end_waits_for_the_cgroup_and_not_for_a_timer(bench: Bench) -> None:
    bench.cgroup.full = True
    job = bench.start("exit 3")
    bench.run_until(lambda: "kill" in bench.cgroup.calls)
    assert bench.loop._wait() > 1000
    assert not bench.ended
    bench.cgroup.empty()
    bench.run_until(lambda: bench.ended)
    record = job.record("boot")
    assert (record.exit_code, record.output_size, record.usage) == (3, 5, {"oom_kills": 1})


def test_stop_after_the_main_process_has_ended_changes_nothing(bench: Bench) -> None:
    bench.cgroup.full = True
    job = bench.start("exit 3")
    bench.run_until(lambda: "kill" in bench.cgroup.calls)
    job.stop(signal.SIGTERM, 10)
    bench.cgroup.empty()
    bench.run_until(lambda: bench.ended)
    assert bench.cgroup.calls == ["kill"]
    assert job.record("boot").stopped is False


def test_stop_that_comes_before_the_shim_has_noticed_the_end_changes_nothing(
    bench: Bench,
) -> None:
    job = bench.start("exit 3")
    bench.run_until(lambda: bench.executed)
    os.waitid(os.P_PIDFD, job.pidfd, os.WEXITED | os.WNOWAIT)
    job.stop(signal.SIGTERM, 10)
    bench.run_until(lambda: bench.ended)
    record = job.record("boot")
    assert (record.exit_code, record.stopped) == (3, False)


def test_time_that_is_up_after_the_end_changes_nothing(bench: Bench) -> None:
    job = bench.start("exit 3", timeout=0.0)
    os.waitid(os.P_PIDFD, job.pidfd, os.WEXITED | os.WNOWAIT)
    bench.run_until(lambda: bench.ended)
    assert job.record("boot").timed_out is False


def test_stop_signals_now_and_kills_after_the_grace(bench: Bench) -> None:
    job = bench.start("exec /bin/sleep 1000")
    bench.run_until(lambda: bench.executed)
    job.stop(signal.SIGUSR1, 0.02)
    assert bench.cgroup.calls == [signal.SIGUSR1]
    bench.run_until(lambda: "kill" in bench.cgroup.calls)
    assert bench.cgroup.mains == [job.pidfd] * 2
    signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
    bench.run_until(lambda: bench.ended)
    record = job.record("boot")
    assert (record.signal, record.stopped) == (signal.SIGKILL, True)


def test_time_that_is_up_asks_a_job_to_end(bench: Bench) -> None:
    job = bench.start("exec /bin/sleep 1000", timeout=0.0)
    bench.run_until(lambda: bench.cgroup.calls)
    assert bench.cgroup.calls == [signal.SIGTERM]
    signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
    bench.run_until(lambda: bench.ended)
    assert job.record("boot").timed_out


def test_job_that_cannot_be_asked_to_end_is_killed_after_the_grace(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.cgroup.frozen_for_good = True
    job = bench.start("exec /bin/sleep 1000")
    bench.run_until(lambda: bench.executed)
    job.stop(signal.SIGTERM, 0.01)
    bench.run_until(lambda: "kill" in bench.cgroup.calls)
    signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
    bench.run_until(lambda: bench.ended)
    assert "signal 15 (Terminated); it will be killed: cannot be signalled; nor could it be" in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize("problem", [OSError("out of descriptors"), MalformedText("x", "y")])
def test_kill_that_fails_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(retry, "FIRST", 0.01)
    job = bench.start("exec /bin/sleep 1000")
    bench.run_until(lambda: bench.executed)
    bench.cgroup.problems = [problem]
    job.stop(signal.SIGTERM, 0)
    bench.run_until(lambda: bench.cgroup.calls == ["kill", "kill"])
    bench.cgroup.problems = [problem]
    signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
    bench.run_until(lambda: bench.ended)
    assert bench.cgroup.calls == ["kill"] * 4


def test_kill_that_is_given_up_is_logged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retry, "FIRST", 0.0001)
    job = bench.start("exec /bin/sleep 1000")
    bench.run_until(lambda: bench.executed)
    bench.cgroup.problems = [OSError(errno.EACCES, "denied")] * retry.ATTEMPTS
    job.stop(signal.SIGTERM, 0)
    bench.run_until(lambda: len(bench.cgroup.calls) == retry.ATTEMPTS)
    first, last = capfd.readouterr().err.splitlines()
    assert "cannot kill it, trying again" in first
    assert "cannot kill it, giving up" in last
    signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
    bench.run_until(lambda: bench.ended)


def test_cgroup_that_can_never_be_emptied_is_given_up_and_the_end_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST", 0.0001)
    bench.cgroup.problems = [OSError(errno.EACCES, "denied")] * 1000
    job = bench.start("exit 3")
    bench.run_until(lambda: bench.ended)
    assert bench.cgroup.calls == ["kill"] * retry.ATTEMPTS
    assert "denied" in job.trouble
    assert job.record("boot").exit_code == 3


def test_cgroup_that_cannot_be_emptied_for_now_is_not_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST", 0.0001)
    monkeypatch.setattr(retry, "LONGEST", 0.0001)
    bench.cgroup.problems = [OSError(errno.EMFILE, "no descriptors")] * 100
    job = bench.start("exit 3")
    bench.run_until(lambda: bench.ended)
    assert len(bench.cgroup.calls) == 101
    assert job.trouble == ""


def test_events_that_cannot_be_understood_are_asked_for_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST", 0.01)
    bench.cgroup.full = True
    bench.start("exit 3")
    bench.run_until(lambda: "kill" in bench.cgroup.calls)
    before = set(Path("/proc/self/fd").iterdir())
    bench.cgroup.malformed = [MalformedText("cgroup.events", "populated")]
    bench.cgroup.change()
    bench.run_until(lambda: bench.cgroup.calls == ["kill"] * 2)
    assert set(Path("/proc/self/fd").iterdir()) <= before
    bench.cgroup.empty()
    bench.run_until(lambda: bench.ended)


def test_usage_that_cannot_be_understood_costs_the_usage_alone(bench: Bench) -> None:
    job = bench.start("exit 3")
    bench.run_until(lambda: bench.ended)
    bench.cgroup.malformed = [MalformedText("cpu.stat", "user_usec")]
    record = job.record("boot")
    assert (record.exit_code, record.usage) == (3, {})


def test_end_that_could_not_be_taken_is_told_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_RETRY", 0.01)
    bench.cgroup.full = True
    job = bench.start("exit 3")
    told: list[LiveJob] = []

    def on_ended(job: LiveJob) -> None:
        told.append(job)
        if len(told) == 1:
            raise RuntimeError
        bench.ended.append(job)

    job._on_ended = on_ended
    bench.run_until(lambda: "kill" in bench.cgroup.calls)
    bench.cgroup.empty()
    bench.run_until(lambda: bench.ended)
    assert told == [job, job]


def test_failed_launch_ends_without_having_been_executed(bench: Bench) -> None:
    job = bench.start("exit 127", report=b"exec 2")
    bench.run_until(lambda: bench.ended)
    assert job.failure is not None
    assert (job.failure.kind, job.failure.errno) == ("exec", 2)
    assert not bench.executed


def test_child_that_dies_without_a_word_was_launched_and_ended(bench: Bench) -> None:
    job = bench.start("kill -KILL $$")
    bench.run_until(lambda: bench.ended)
    assert bench.executed == [job]
    assert job.record("boot").signal == signal.SIGKILL


def test_output_that_is_no_file_has_no_size(bench: Bench) -> None:
    job = bench.start("exit 0")
    bench.run_until(lambda: bench.ended)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, job.outputs[0])
    os.close(null)
    assert stat.S_ISCHR(os.fstat(job.outputs[0]).st_mode)
    assert job.record("boot").output_size == 0
