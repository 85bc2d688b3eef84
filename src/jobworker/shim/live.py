"""One live job: from the clone to the moment when its end can be told.

The order of an end: the main process ends (pidfd), and with that the outcome is fixed;
`cgroup.kill` takes what it left behind; the cgroup says `populated 0`; usage and the final size of
the output are read. The main process is reaped last, after the end has been written down: if the
shim dies before that, the keeper inherits the zombie and with it the outcome. Nothing here waits:
every step is a handler of the loop.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from jobworker import steps
from jobworker.cgroups.cgroup import Cgroup
from jobworker.shim.log import log
from jobworker.shim.retry import Retry
from jobworker.shim.schedule import Schedule
from jobworker.shim.spawn import SpawnFailure, read_failure
from jobworker.shim.wire import ExitRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobworker.shim.loop import Loop
    from jobworker.shim.spawn import Spawned
    from jobworker.shim.wire import Launch

_RETRY: Final = 1.0
"""Seconds until a process that is traced is tried to be reaped again."""


class _Moment(NamedTuple):
    """A time since the epoch, and the same on the monotonic clock; seconds."""

    at: float
    monotonic: float


class _Outcome(NamedTuple):
    """What waitid(2) said of the main process, and when it ended."""

    code: int
    status: int
    ended: _Moment


class LiveJob:
    """A job from its clone to its end; `on_executed` and `on_ended` are each called once at most.

    `on_executed(job)` follows a successful execve; `on_ended(job)` comes when the main process has
    ended and the cgroup is empty. `failure` is set if the child could not become the command;
    then `on_executed` has not been called. `trouble` says why the cgroup could not be emptied, if
    that is so. `outputs` are the files it writes, that of standard error second if it has its own.
    It owns its descriptors until `close`.
    """

    def __init__(
        self,
        launch: Launch,
        spawned: Spawned,
        *,
        outputs: Sequence[int],
        job_dir: int,
        loop: Loop,
        on_executed: Callable[[LiveJob], None],
        on_ended: Callable[[LiveJob], None],
    ) -> None:
        self.id = launch.job_id
        self.pid = spawned.pid
        self.pidfd = spawned.pidfd
        self.start_time = spawned.start_time
        self.job_dir = job_dir
        self.executed = False
        self.failure: SpawnFailure | None = None
        self.trouble = ""
        self.cgroup = Cgroup(launch.cgroup_path)
        self._timeout = launch.timeout
        self._stop_signal = launch.stop_signal
        self._stop_grace = launch.stop_grace
        self.outputs = tuple(outputs)
        self._status = spawned.status
        self._cgroup_events = -1
        self._loop = loop
        self._on_executed = on_executed
        self._on_ended = on_ended
        self._schedule = Schedule()
        self._emptying = Retry()
        self._killing = Retry()
        self.started_at = time.time()
        self._started = time.monotonic()
        self._ended: _Moment | None = None
        self._traced = False
        self._outcome: _Outcome | None = None
        loop.watch(self._status, select.EPOLLIN, self._on_status)

    def stop(self, signum: int, grace: float) -> None:
        """Signal every process of the job, and kill what is left after `grace` seconds.

        The main process gets both wherever it has gone: one of root's can leave its cgroup.
        A job whose main process has ended is not touched: it has ended by itself.
        """
        self._reap()
        if self._ended is not None:
            return
        self._schedule.stop(time.monotonic(), grace)
        self._ask_to_end(signum, grace)

    @property
    def stopped(self) -> bool:
        """Whether somebody has asked for its end."""
        return self._schedule.stopped

    def record(self, boot_id: str) -> ExitRecord:
        """Return how the job ended. Only after `on_ended`, and not after a failure."""
        outcome = self._outcome
        if outcome is None:
            raise ValueError(f"job {self.id} has not ended")
        exited = outcome.code == os.CLD_EXITED
        return ExitRecord(
            job_id=self.id,
            boot_id=boot_id,
            pid=self.pid,
            exit_code=outcome.status if exited else None,
            signal=None if exited else outcome.status,
            core_dumped=outcome.code == os.CLD_DUMPED,
            stopped=self._schedule.stopped,
            timed_out=self._schedule.timed_out,
            started_at=self.started_at,
            # The clock may have been set back meanwhile; no job ends before it has begun.
            ended_at=max(outcome.ended.at, self.started_at),
            runtime=outcome.ended.monotonic - self._started,
            output_size=_size(self.outputs[0]),
            stderr_size=_size(self.outputs[1]) if len(self.outputs) > 1 else None,
            usage=self._usage(),
        )

    def close(self) -> None:
        """Reap the main process, and close all descriptors but `job_dir`."""
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        for fd in (self.pidfd, *self.outputs):
            os.close(fd)

    def _on_status(self) -> None:
        try:
            self.failure = read_failure(self._status)
        except BlockingIOError:
            return
        self._loop.unwatch(self._status)
        os.close(self._status)
        if self.failure is None:
            self.executed = True
            self.started_at = time.time()
            self._started = time.monotonic()
            self._schedule.start(self._started, self._timeout)
            self._arm()
        # Edge-triggered: the pidfd of a process that cannot be reaped yet stays readable.
        self._loop.watch(self.pidfd, select.EPOLLIN | select.EPOLLET, self._reap)
        if self.failure is None:
            self._on_executed(self)

    def _reap(self) -> None:
        """Fix the outcome if the main process has ended and the end is not known yet.

        It is not reaped yet (WNOWAIT): nobody else could tell its end if this process died now.
        """
        if self._outcome is not None or not (self.executed or self.failure):
            return
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None and not _is_readable(self.pidfd):
            return
        if self._ended is None:
            self._ended = _Moment(time.time(), time.monotonic())
            self._loop.cancel((self.id, "deadline"))
        if result is None:
            self._get_rid_of_tracer()
            return
        self._outcome = _Outcome(result.si_code, result.si_status, self._ended)
        steps.reached("shim.end.reaped")
        self._loop.unwatch(self.pidfd)
        self._loop.cancel((self.id, "tracer"))
        self._loop.call_at((self.id, "cgroup"), time.monotonic(), self._empty_cgroup)

    def _get_rid_of_tracer(self) -> None:
        """Kill the job's other processes, one of which may trace the main one that has ended.

        A process that is traced by another than its parent is not the parent's to reap until the
        tracer has done so, has detached or is dead (ptrace(2)). The pidfd is readable all the time,
        and reports an edge when the tracer is gone. One outside the cgroup is waited for.
        """
        if not self._traced:
            log(f"job {self.id}: its main process has ended, but is held by one that traces it")
            self._traced = True
        self._loop.call_at((self.id, "tracer"), time.monotonic() + _RETRY, self._reap)
        try:
            self.cgroup.kill()
        except (OSError, ValueError) as error:
            log(f"job {self.id}: cannot kill what traces its main process: {error}")

    def _empty_cgroup(self) -> None:
        """Kill what the main process has left behind, and wait until it is gone."""
        try:
            self.cgroup.kill()
            if self.cgroup.populated():
                self._cgroup_events = self.cgroup.open_events()
                self._loop.watch(self._cgroup_events, select.EPOLLPRI, self._check_cgroup)
        except FileNotFoundError:
            pass  # somebody has removed the cgroup, which proves that it was empty
        except (OSError, ValueError) as error:
            self._empty_cgroup_later(error)
            return
        if self._cgroup_events < 0:
            self._conclude()
        else:
            self._check_cgroup()

    def _check_cgroup(self) -> None:
        try:
            populated = self.cgroup.populated(self._cgroup_events)
        except (OSError, ValueError) as error:
            self._empty_cgroup_later(error)
            return
        if not populated:
            self._close_events()
            self._conclude()

    def _empty_cgroup_later(self, error: Exception) -> None:
        """Begin anew: a change that was read but not understood is not reported again."""
        self._close_events()
        pause = self._emptying.after(error)
        if pause is None:
            log(f"job {self.id}: cannot empty its cgroup, giving up: {error}")
            self.trouble = f"cannot empty it: {error}"
            self._conclude()
            return
        if self._emptying.failures == 1:
            log(f"job {self.id}: cannot empty its cgroup, trying again: {error}")
        self._loop.call_at((self.id, "cgroup"), time.monotonic() + pause, self._empty_cgroup)

    def _close_events(self) -> None:
        if self._cgroup_events >= 0:
            self._loop.unwatch(self._cgroup_events)
            os.close(self._cgroup_events)
            self._cgroup_events = -1

    def _conclude(self) -> None:
        """Tell the end by way of the loop, which tries again what fails."""
        steps.reached("shim.end.emptied")
        self._loop.call_at((self.id, "end"), time.monotonic(), lambda: self._on_ended(self))

    def _ask_to_end(self, signum: int, grace: float) -> None:
        if grace > 0:
            try:
                self.cgroup.ask_to_end(signum, self.pidfd)
            except (OSError, ValueError) as error:
                log(
                    f"job {self.id}: cannot ask it to end by signal {signum} "
                    f"({signal.strsignal(signum)}); it will be killed: {_with_notes(error)}"
                )
        self._arm()

    def _arm(self) -> None:
        when = self._schedule.next()
        if when is not None:
            self._loop.call_at((self.id, "deadline"), when, self._on_deadline)

    def _on_deadline(self) -> None:
        self._reap()
        if self._ended is not None:
            return
        steps.reached("shim.deadline.due")
        now = time.monotonic()
        timeout_at, kill_at = self._schedule.timeout_at, self._schedule.kill_at
        if timeout_at is not None and timeout_at <= now:
            self._schedule.expire(now, self._stop_grace)
            self._ask_to_end(self._stop_signal, self._stop_grace)
        if kill_at is not None and kill_at <= now:
            self._kill(now)

    def _kill(self, now: float) -> None:
        try:
            self.cgroup.kill(self.pidfd)
            self._schedule.kill_at = None
        except (OSError, ValueError) as error:
            pause = self._killing.after(error)
            if pause is None:
                log(f"job {self.id}: cannot kill it, giving up: {error}")
                self._schedule.kill_at = None
            else:
                if self._killing.failures == 1:
                    log(f"job {self.id}: cannot kill it, trying again: {error}")
                self._schedule.kill_at = now + pause
        self._arm()

    def _usage(self) -> dict[str, int]:
        try:
            return self.cgroup.usage()
        except (OSError, ValueError) as error:
            log(f"job {self.id}: cannot read its usage: {error}")
            return {}


def _with_notes(error: Exception) -> str:
    return "; ".join((str(error), *getattr(error, "__notes__", ())))


def _size(output: int) -> int:
    status = os.fstat(output)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _is_readable(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
