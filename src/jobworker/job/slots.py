"""How many jobs may run at a time, in all and of each user, and who has which slot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobworker.errors import ConfigError, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningLimits:
    """How many jobs may be pending or running at a time; None means as many as come."""

    total: int | None = None
    per_user: int | None = None

    def check(self) -> None:
        """Raise ConfigError for a limit that would let no job start."""
        for name, value in (
            ("max_running_jobs", self.total),
            ("max_running_jobs_per_user", self.per_user),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")


class Slots:
    """Who has a slot. Nothing of it is kept: a Service fills it from its registry.

    There is no await between `check` and `take` in a start, so no two starts get the last slot.
    """

    def __init__(self, limits: RunningLimits) -> None:
        self._limits = limits
        self._owners: dict[str, str] = {}
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._owners)

    def check(self, owner: str) -> None:
        """Raise ResourceExhausted, with the limit and how many jobs run, if there is no slot."""
        total, per_user = self._limits.total, self._limits.per_user
        if total is not None and len(self._owners) >= total:
            raise ResourceExhausted(
                f"cannot start the job: {_jobs(len(self._owners))} here, and the server runs at "
                f"most {total} at a time (its setting max-running-jobs); wait until one has "
                "ended, or stop one"
            )
        if per_user is not None and self._taken[owner] >= per_user:
            raise ResourceExhausted(
                f"cannot start the job: {_jobs(self._taken[owner])} for {owner or 'this user'}, "
                f"and the server runs at most {per_user} at a time for each user (its setting "
                "max-running-jobs-per-user); wait until one has ended, or stop one"
            )

    def take(self, job_id: str, owner: str) -> None:
        """Give a slot to a job, whether there is one or not."""
        self.give_back(job_id)
        self._owners[job_id] = owner
        self._taken[owner] += 1

    def fill(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Give slots to the jobs (id, owner) of an earlier server."""
        for job_id, owner in jobs:
            self.take(job_id, owner)

    def give_back(self, job_id: str) -> None:
        """Take the slot from a job that has ended or did not start; twice is fine."""
        owner = self._owners.pop(job_id, None)
        if owner is None:
            return
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]


def _jobs(count: int) -> str:
    return f"{count} job runs" if count == 1 else f"{count} jobs run"
