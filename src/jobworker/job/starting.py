"""Starting jobs: the intent is recorded, then the job launched; what fails leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jobworker import cgroups, steps
from jobworker.errors import JobWorkerError, RequestConflict, ShimUnavailable, ShuttingDown
from jobworker.exhaustion import exhausted
from jobworker.job import launch
from jobworker.job.custody import StartUndecided
from jobworker.job.record import JobRecord
from jobworker.job.spec import effective_cap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jobworker.job.abandoning import Abandoning
    from jobworker.job.custody import Custody
    from jobworker.job.job import Job
    from jobworker.job.registry.store import Store
    from jobworker.job.slots import Slots
    from jobworker.job.spec import JobSpec

log = logging.getLogger(__name__)

_ABANDON_PATIENCE: Final = 10.0
"""Seconds that the caller of a start that failed waits until nothing is left of it."""


class Starting:
    """Starts the jobs of a Service, each in a task of its own.

    `output_max_bytes` is the cap on the output of jobs that ask for none, `make_job` makes a job of
    its record.
    """

    def __init__(
        self,
        store: Store,
        custody: Custody,
        cgroups: cgroups.Service,
        log_dir: Path,
        *,
        slots: Slots,
        abandoning: Abandoning,
        output_max_bytes: int | None,
        make_job: Callable[[JobRecord], Job],
    ) -> None:
        self._store = store
        self._custody = custody
        self._cgroups = cgroups
        self._log_dir = log_dir
        self._slots = slots
        self._abandoning = abandoning
        self._output_max_bytes = output_max_bytes
        self._make_job = make_job
        self._launches: dict[str, asyncio.Task[Job]] = {}
        self._leaving = False

    @property
    def under_way(self) -> list[asyncio.Task[Job]]:
        """The launches that have not come to an end."""
        return list(self._launches.values())

    def launch(self, job_id: str) -> asyncio.Task[Job] | None:
        """Return the launch of a job, if it is under way."""
        return self._launches.get(job_id)

    def leave(self) -> None:
        """Begin no more launches, and leave those that are under way to the next server."""
        self._leaving = True

    async def start(self, spec: JobSpec, owner: str) -> str:
        """Begin the start of a job, or find the one of the same request; return the job's id.

        See `Service.start_job`; what the launch itself raises, `launch` has.
        """
        spec.check()
        if self._leaving:
            raise ShuttingDown("cannot start a job: the server is shutting down")
        return await self._find_request(spec, owner) or self._begin(spec, owner)

    async def _find_request(self, spec: JobSpec, owner: str) -> str | None:
        found = self._store.find_request(owner, spec.request_id) if spec.request_id else None
        if found is None:
            return None
        record, stdin_digest = found
        if (leftover := self._abandoning.get(record.id)) is not None:
            await self._abandoning.abandon(leftover)
            return await self._find_request(spec, owner)
        if record.spec != replace(spec, stdin=b"") or stdin_digest != _digest(spec.stdin):
            raise RequestConflict(
                f"request_id {spec.request_id!r} was used for job {record.id}, which is a "
                "different request; use a new request_id"
            )
        return record.id

    def _begin(self, spec: JobSpec, owner: str) -> str:
        """Record the intent, before anything is created, and begin the launch."""
        self._slots.check(owner)
        record = JobRecord(
            id=str(uuid.uuid4()),
            owner=owner,
            spec=replace(spec, stdin=b""),
            created_at=time.time(),
            warnings=self._cgroups.warnings(spec.limits),
            output_max_bytes=effective_cap(spec.output_max_bytes, self._output_max_bytes),
        )
        self._store.insert(record, _digest(spec.stdin))
        steps.reached("server.start.recorded")
        self._slots.take(record.id, owner)
        job = self._make_job(record)
        self._custody.add(job)
        task = asyncio.create_task(self._launch(job, spec))
        self._launches[job.id] = task
        task.add_done_callback(lambda task: self._launched(job, task))
        return job.id

    def _launched(self, job: Job, task: asyncio.Task[Job]) -> None:
        del self._launches[job.id]
        if not task.cancelled():
            task.exception()  # The callers have it; if they are gone, nobody misses it.

    async def _launch(self, job: Job, spec: JobSpec) -> Job:
        try:
            account = await launch.look_up(spec.user)
            cgroup = self._cgroups.create_cgroup(job.id, spec.limits)
            steps.reached("server.start.cgroup_made")
            if spec.limits != cgroups.Limits():
                job.publish(replace(job.record, limits=cgroup.limits()))
            description = launch.describe(job.record, spec, cgroup, account)
            with launch.descriptors(self._log_dir, job.record, cgroup, spec.stdin) as fds:
                await self._custody.launch(job, description, **fds)
        except ShimUnavailable as error:
            if self._leaving or isinstance(error, StartUndecided):
                raise  # Whether it has started, is found out later, or by the next server.
            await self._abandon(job)
            raise
        except BaseException as error:
            await self._abandon(job)
            if isinstance(error, OSError) and (gone := exhausted("start the job", error.errno)):
                raise gone from error
            raise
        return job

    async def _abandon(self, job: Job) -> None:
        try:
            async with asyncio.timeout(_ABANDON_PATIENCE):
                await self._abandoning.abandon(job)
        except (TimeoutError, OSError, sqlite3.Error, JobWorkerError):
            log.exception("cannot remove what is left of job %s now", job.id)


def _digest(stdin: bytes) -> str:
    return hashlib.sha256(stdin).hexdigest() if stdin else ""
