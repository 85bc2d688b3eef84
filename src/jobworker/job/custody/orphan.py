"""Jobs whose shim has died: they go on, and the server watches them to their end."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from jobworker.job.processes import boot_time, has_ended, wait_empty, wait_readable
from jobworker.shim.schedule import Schedule

if TYPE_CHECKING:
    from jobworker.cgroups import Cgroup
    from jobworker.job.spec import StopPolicy

log = logging.getLogger(__name__)

_RETRY: Final = 1.0
"""Seconds until a cgroup that could not be emptied is tried again."""
_LONGEST_SLEEP: Final = 60.0
"""Seconds; the event loop's clock stands still while the host is suspended, CLOCK_BOOTTIME not."""


class Orphan:
    """A job that has lost its parent.

    `pidfd` is the main process's, or None if that process is gone already; the Orphan owns it until
    `close`. If it is not known which process is the main one, the job ends with its last process.
    `policy` is how it is asked to end when its time is up. All times are on CLOCK_BOOTTIME, so that
    whoever takes a job over carries out what was due, and when it was due.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        pidfd: int | None,
        *,
        policy: StopPolicy,
        main_process_known: bool = True,
    ) -> None:
        self._cgroup = cgroup
        self._pidfd = pidfd
        self._policy = policy
        self._main_process_known = main_process_known
        self._schedule = Schedule()
        self._timer: asyncio.TimerHandle | None = None
        self._has_ended = main_process_known and (pidfd is None or has_ended(pidfd))

    @property
    def pidfd(self) -> int | None:
        """The main process's pidfd, which stays the Orphan's own."""
        return self._pidfd

    @property
    def stopped(self) -> bool:
        """Whether somebody asked for its end before its main process had ended."""
        return self._schedule.stopped

    @property
    def timed_out(self) -> bool:
        """Whether its time was up before its main process had ended."""
        return self._schedule.timed_out

    async def wait_ended(self) -> None:
        """Return once the main process has ended, or every process if it is not known."""
        try:
            if self._pidfd is not None:
                await wait_readable(self._pidfd)
            elif not self._main_process_known:
                await wait_empty(self._cgroup)
            self._has_ended = True
        finally:
            self._cancel_timer()

    async def empty(self) -> None:
        """Kill what the main process has left behind, and return once it is gone."""
        while not await self._emptied():  # noqa: ASYNC110 - it waits for an event itself
            await asyncio.sleep(_RETRY)

    def close(self) -> None:
        """Close the pidfd."""
        self._cancel_timer()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def limit(self, at: float) -> None:
        """Stop the job at that moment, as the shim would have done; its grace begins then, too."""
        self._schedule.start(at, 0.0)
        self._arm()

    def accepted(self, signum: int, kill_at: float) -> None:
        """Take over a stop that was accepted before; if the job has ended since, it was heard."""
        if self._has_ended:
            self._schedule.stopped = True
            return
        self.stop(signum, kill_at)

    def stop(self, signum: int, kill_at: float) -> None:
        """Send the signal to all of the job now, and SIGKILL at the moment `kill_at`.

        A job whose main process has ended has ended by itself, whatever comes later.
        """
        if self._check_ended():
            return
        self._schedule.stop(kill_at, 0.0)
        self._ask_to_end(signum, kill_at)

    def _check_ended(self) -> bool:
        if self._pidfd is not None:
            self._has_ended = self._has_ended or has_ended(self._pidfd)
        return self._has_ended

    def _ask_to_end(self, signum: int, kill_at: float) -> None:
        if kill_at > boot_time():
            try:
                self._cgroup.ask_to_end(signum, self._pidfd)
            except (OSError, ValueError):
                log.exception("cannot ask job %s to end; it will be killed", self._cgroup.id)
        self._arm()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._cancel_timer()
        due = self._schedule.next()
        if due is not None and not self._has_ended:
            pause = min(max(due - boot_time(), 0.0), _LONGEST_SLEEP)
            self._timer = asyncio.get_running_loop().call_later(pause, self._on_time)

    def _on_time(self) -> None:
        if self._check_ended():
            return
        now = boot_time()
        timeout_at = self._schedule.timeout_at
        if timeout_at is not None and timeout_at <= now:
            self._schedule.expire(timeout_at, self._policy.grace)
            self._ask_to_end(self._policy.signal, timeout_at + self._policy.grace)
        kill_at = self._schedule.kill_at
        if kill_at is not None and kill_at <= now:
            self._kill(now)
        self._arm()

    def _kill(self, now: float) -> None:
        try:
            self._cgroup.kill(self._pidfd)
            self._schedule.kill_at = None
        except (OSError, ValueError):
            log.exception("cannot kill job %s; trying again", self._cgroup.id)
            self._schedule.kill_at = now + _RETRY

    async def _emptied(self) -> bool:
        try:
            self._cgroup.kill()
            await wait_empty(self._cgroup)
        except (OSError, ValueError):
            log.exception("cannot empty the cgroup of job %s; trying again", self._cgroup.id)
            return False
        return True
