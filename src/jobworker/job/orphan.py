"""Jobs whose shim has died: they go on, and the server watches them to their end."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from jobworker.job.outcome import Told
from jobworker.job.processes import wait_empty, wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.cgroups import Cgroup
    from jobworker.job.spec import StopPolicy

log = logging.getLogger(__name__)

_RETRY: Final = 1.0
"""Seconds until a cgroup that could not be emptied is tried again."""


class Orphan:
    """A job that has lost its parent. Nobody can reap it, so its exit code will not be known.

    `pidfd` is the main process's, or None if that process is gone already; the Orphan owns it. If
    it is not known which process is the main one, the job ends with its last process.
    """

    def __init__(
        self, cgroup: Cgroup, pidfd: int | None, *, main_process_known: bool = True
    ) -> None:
        self._cgroup = cgroup
        self._pidfd = pidfd
        self._main_process_known = main_process_known
        self._timers: list[asyncio.TimerHandle] = []
        self._has_ended = False
        self.told: Told | None = None
        """Why it was told to end, if it was."""

    @property
    def pidfd(self) -> int | None:
        """The main process's pidfd, which stays the Orphan's own."""
        return self._pidfd

    async def wait_ended(self) -> None:
        """Return once the main process has ended and everything it left behind was killed."""
        try:
            if self._pidfd is not None:
                await wait_readable(self._pidfd)
            elif not self._main_process_known:
                await wait_empty(self._cgroup)
            self._has_ended = True
            self._cancel_timers()
            while not await self._emptied():  # noqa: ASYNC110 - it waits for an event itself
                await asyncio.sleep(_RETRY)
        finally:
            self._cancel_timers()
            if self._pidfd is not None:
                os.close(self._pidfd)

    def limit(self, seconds: float, policy: StopPolicy) -> None:
        """Stop the job after `seconds`, as the shim would have done."""
        self._later(seconds, lambda: self.stop(policy, Told.TIMEOUT))

    def stop(self, policy: StopPolicy, told: Told = Told.STOP) -> None:
        """Send the signal to all of the job now, and SIGKILL after the grace period.

        A job whose main process has ended has ended by itself, whatever comes later.
        """
        if self._has_ended:
            return
        self.told = self.told or told
        self._later(policy.grace, self._kill)
        if policy.grace > 0:
            try:
                self._cgroup.ask_to_end(policy.signal, self._pidfd)
            except (OSError, ValueError):
                log.exception("cannot ask job %s to end; it will be killed", self._cgroup.id)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(max(seconds, 0.0), action))

    def _kill(self) -> None:
        try:
            self._cgroup.kill(self._pidfd)
        except (OSError, ValueError):
            log.exception("cannot kill job %s; trying again", self._cgroup.id)
            self._later(_RETRY, self._kill)

    async def _emptied(self) -> bool:
        try:
            self._cgroup.kill()
            await wait_empty(self._cgroup)
        except (OSError, ValueError):
            log.exception("cannot empty the cgroup of job %s; trying again", self._cgroup.id)
            return False
        return True
