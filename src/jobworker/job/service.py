"""Starting, stopping and finding jobs: what a user of the library has in hand."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from jobworker import cgroups, output, shim, steps
from jobworker.errors import (
    FailedPrecondition,
    JobNotFound,
    JobWorkerError,
    RequestConflict,
    ShimUnavailable,
    ShuttingDown,
)
from jobworker.exhaustion import exhausted
from jobworker.ids import parse_job_id
from jobworker.job import freezer, launch
from jobworker.job.catalog import Catalog, Page
from jobworker.job.changes import Changes
from jobworker.job.control import Control
from jobworker.job.custody import Custody, StartUndecided
from jobworker.job.event import EventType
from jobworker.job.job import Job
from jobworker.job.ledger import Ledger
from jobworker.job.lock import DirectoryLock
from jobworker.job.places import Places, RunningLimits
from jobworker.job.processes import wait_empty
from jobworker.job.readers import Readers
from jobworker.job.record import JobRecord
from jobworker.job.registry.ended import EndedJobs
from jobworker.job.registry.listing import JobFilter
from jobworker.job.registry.reader import RegistryReader
from jobworker.job.registry.store import Store
from jobworker.job.removal import Removal, refuse_running
from jobworker.job.retainer import Retainer
from jobworker.job.retention import KEEP_ALL, Retention
from jobworker.job.spec import JobSpec, effective_cap
from jobworker.job.state import State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType

    from jobworker.job.event import Told
    from jobworker.job.spec import JobSpec
    from jobworker.job.state import JobStatus

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

DEFAULT_LOG_DIR: Final = Path("/var/log/jobworker")
DEFAULT_STATE_DIR: Final = Path("/var/lib/jobworker")
DEFAULT_RUN_DIR: Final = Path("/run/jobworker")
DEFAULT_CGROUP_ROOT: Final = Path("/cgroup2")

_ABANDON_RETRY: Final = 0.5
_LONGEST_RETRY: Final = 60.0
"""Seconds until what is left of a start that failed is tried to be removed again."""
_ABANDON_PATIENCE: Final = 10.0
"""Seconds that the caller of a start that failed waits until nothing is left of it."""
_THREADS: Final = 4
"""How many changes of limits may wait for the kernel at a time."""
_LEAVING_PATIENCE: Final = 5.0
"""Seconds that what is under way is given to come to its end when the Service is left."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that has happened to a job.

    `event` is "started", "stopping" (it was told to stop), "limits updated", "paused", "resumed",
    "signaled", "ended" or "removed"; `user` is who asked for it, empty for an end and for what
    retention does. `signal` is what was sent, by a stop too, and 0 for everything else.
    """

    event: str
    job: Job
    user: str = ""
    signal: int = 0


class Service:
    """Jobs on this host. Use it as an async context manager; it belongs to one event loop.

    Entering takes the locks, makes the directories and the cgroup, reaches the shim (starting one
    if there is none) and finds the jobs of an earlier server again. Leaving lets the jobs go on.
    `output_max_bytes` is the cap on the output of jobs that ask for none of their own (None: all is
    kept). `retention` says how long finished jobs are kept, `running` how many may run at a time;
    by default there are no bounds. Raises ConfigError if they are impossible.

    `on_change` is called with each change, after the registry knows of it. `cgroups_service` and
    `connect` (to the shim) are the boundaries to the kernel and to the other process.
    """

    def __init__(
        self,
        *,
        log_dir: Path = DEFAULT_LOG_DIR,
        state_dir: Path = DEFAULT_STATE_DIR,
        run_dir: Path = DEFAULT_RUN_DIR,
        cgroup_root: Path = DEFAULT_CGROUP_ROOT,
        output_max_bytes: int | None = None,
        retention: Retention = KEEP_ALL,
        running: RunningLimits = RunningLimits(),  # noqa: B008 - it is immutable
        on_change: Callable[[Change], None] = lambda _change: None,
        cgroups_service: cgroups.Service | None = None,
        connect: Callable[..., Awaitable[shim.Client]] | None = None,
    ) -> None:
        # Absolute: the shim has another working directory.
        self._log_dir = log_dir.absolute()
        self._state_dir = state_dir.absolute()
        self._run_dir = run_dir.absolute()
        self.cgroups = cgroups_service or cgroups.Service(cgroup_root.absolute())
        self._output_max_bytes = output_max_bytes
        retention.check()
        running.check()
        self._retention = retention
        self._places = Places(running)
        self._readers = Readers(self._reader_left)
        self._report = on_change
        self._custody = Custody(
            run_dir=self._run_dir,
            log_dir=self._log_dir,
            cgroups=self.cgroups,
            on_running=self._running,
            on_stop=self._stop_accepted,
            on_ended=self._ended,
            abandon=self._abandon,
            connect=connect,
        )
        self._starting: dict[str, asyncio.Task[Job]] = {}
        self._changes = Changes()
        self._control = Control(
            self._custody,
            self.cgroups,
            fetch=self.fetch_job,
            fetch_started=self._fetch_started,
            report=lambda event, job, user, signum: self._on_change(
                Change(event, job, user, signum)
            ),
        )
        self._leftovers: dict[str, Job] = {}
        self._pauses: dict[str, float] = {}
        self._abandoning: dict[str, asyncio.Task[None]] = {}
        self._closing = False
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for directory in dict.fromkeys((self._run_dir, self._state_dir)):
                stack.enter_context(DirectoryLock.acquire(directory))
            steps.reached("server.recovery.locked")
            # Left before the locks are: until the kernel has answered, no other server may come.
            self._threads = stack.enter_context(ThreadPoolExecutor(_THREADS, "limits"))
            self._disk = stack.enter_context(ThreadPoolExecutor(1, "removal"))
            output.prepare(self._log_dir)
            self._store = Store.open(self._state_dir / "jobs.db")
            stack.callback(self._store.close)
            self._ledger = Ledger(self._store, self._knows)
            stack.push_async_callback(self._ledger.close)
            reader = RegistryReader(self._store.path)
            stack.callback(reader.close)
            self._catalog = Catalog(reader, fetch=self._find, unrecorded=self._ledger.all_unwritten)
            steps.reached("server.recovery.registry_opened")
            self._prepare_removal()
            self.cgroups.setup()
            steps.reached("server.recovery.cgroups_ready")
            self._watcher = stack.enter_context(output.Watcher())
            stack.push_async_callback(self._custody.close)
            unfinished = self._store.unfinished()
            self._places.fill((record.id, record.owner) for record in unfinished)
            await self._custody.open([self._job(record) for record in unfinished])
            self._read_limits_again()
            await asyncio.gather(*map(self._finish_freezing, self._custody.jobs()))
            stack.push_async_callback(self._settle)
            stack.push_async_callback(_cancel, asyncio.create_task(self._retainer.run()))
            steps.reached("server.recovery.done")
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        self._ledger.watching.close()
        for job in self._custody.jobs():
            job.leave()
        await self._exit.aclose()

    # Starting

    async def start_job(self, spec: JobSpec, *, owner: str = "") -> Job:
        """Start a job and return it once its command has been executed.

        The same `spec.request_id` of the same owner attaches to the job it started before. A caller
        that is cancelled meanwhile does not undo the start.

        Raises InvalidArgument, FailedPrecondition (and its kinds), RequestConflict,
        ResourceExhausted, ConfigError or Unavailable; then nothing of the job is left behind. Only
        if the service is left at the same moment the job may have started: the same request_id
        tells.
        """
        spec.check()
        if self._closing:
            raise ShuttingDown("cannot start a job: the server is shutting down")
        job_id = await self._find_request(spec, owner) or self._begin(spec, owner)
        if job_id in self._starting:
            return await asyncio.shield(self._starting[job_id])
        return await self.fetch_job(job_id)

    async def _find_request(self, spec: JobSpec, owner: str) -> str | None:
        found = self._store.find_request(owner, spec.request_id) if spec.request_id else None
        if found is None:
            return None
        record, stdin_digest = found
        if (leftover := self._leftovers.get(record.id)) is not None:
            await self._abandon(leftover)
            return await self._find_request(spec, owner)
        if record.spec != replace(spec, stdin=b"") or stdin_digest != _digest(spec.stdin):
            raise RequestConflict(
                f"request_id {spec.request_id!r} was used for job {record.id}, which is a "
                "different request; use a new request_id"
            )
        return record.id

    def _begin(self, spec: JobSpec, owner: str) -> str:
        """Record the intent, before anything is created, and begin the launch."""
        self._places.check(owner)
        record = JobRecord(
            id=str(uuid.uuid4()),
            owner=owner,
            spec=replace(spec, stdin=b""),
            created_at=time.time(),
            warnings=self.cgroups.warnings(spec.limits),
            output_max_bytes=effective_cap(spec.output_max_bytes, self._output_max_bytes),
        )
        self._store.insert(record, _digest(spec.stdin))
        steps.reached("server.start.recorded")
        self._places.take(record.id, owner)
        job = self._job(record)
        self._custody.add(job)
        task = asyncio.create_task(self._launch(job, spec))
        self._starting[job.id] = task
        task.add_done_callback(lambda task: self._launched(job, task))
        return job.id

    def _launched(self, job: Job, task: asyncio.Task[Job]) -> None:
        del self._starting[job.id]
        if not task.cancelled():
            task.exception()  # The callers have it; if they are gone, nobody misses it.

    async def _launch(self, job: Job, spec: JobSpec) -> Job:
        try:
            account = await launch.look_up(spec.user)
            cgroup = self.cgroups.create_cgroup(job.id, spec.limits)
            steps.reached("server.start.cgroup_made")
            if spec.limits != cgroups.Limits():
                job.publish(replace(job.record, limits=cgroup.limits()))
            description = launch.describe(job.record, spec, cgroup, account)
            with launch.descriptors(self._log_dir, job.record, cgroup, spec.stdin) as fds:
                await self._custody.launch(job, description, **fds)
        except ShimUnavailable as error:
            if self._closing or isinstance(error, StartUndecided):
                raise  # Whether it has started, is found out later, or by the next server.
            await self._abandon_quietly(job)
            raise
        except BaseException as error:
            await self._abandon_quietly(job)
            if isinstance(error, OSError) and (gone := exhausted("start the job", error.errno)):
                raise gone from error
            raise
        return job

    async def _abandon_quietly(self, job: Job) -> None:
        try:
            async with asyncio.timeout(_ABANDON_PATIENCE):
                await self._abandon(job)
        except (TimeoutError, OSError, sqlite3.Error, JobWorkerError):
            log.exception("cannot remove what is left of job %s now", job.id)

    async def _abandon(self, job: Job) -> None:
        """Remove every trace of a job that did not start; those who wait for it are told.

        However many want it, it is done once at a time, and goes on if they go away.
        """
        if job.id not in self._abandoning:
            self._custody.drop(job)
            self._places.give_back(job.id)
            self._leftovers[job.id] = job
            job.forget()
            self._begin_removing_traces(job)
        await asyncio.shield(self._abandoning[job.id])

    def _begin_removing_traces(self, job: Job) -> None:
        task = asyncio.create_task(self._remove_traces(job))
        self._abandoning[job.id] = task
        task.add_done_callback(lambda task: self._abandoned(job, task))

    def _abandoned(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._abandoning[job.id]
        if task.cancelled() or task.exception() is None:  # The callers have the exception.
            return
        pause = self._pauses.get(job.id, _ABANDON_RETRY)
        self._pauses[job.id] = min(2 * pause, _LONGEST_RETRY)
        asyncio.get_running_loop().call_later(pause, self._abandon_again, job)

    def _abandon_again(self, job: Job) -> None:
        idle = job.id in self._leftovers and job.id not in self._abandoning
        if idle and not self._closing:
            self._begin_removing_traces(job)

    async def _remove_traces(self, job: Job) -> None:
        cgroup = self.cgroups.cgroup(job.id)
        cgroup.kill()
        await wait_empty(cgroup)
        steps.reached("server.abandon.emptied")
        self.cgroups.remove_cgroup(job.id)
        steps.reached("server.abandon.cgroup_removed")
        output.remove(self._log_dir, job.id)
        steps.reached("server.abandon.directory_removed")
        self._store.delete(job.id)
        steps.reached("server.abandon.deleted")
        del self._leftovers[job.id]
        self._pauses.pop(job.id, None)
        self._ledger.watching.wake()  # Who watches this job waits for nothing.

    # Stopping and finding

    async def stop_job(
        self,
        job_id: str,
        *,
        grace: float | None = None,
        signal: int | None = None,
        user: str = "",
    ) -> Job:
        """End a job and return it once it has ended; a finished job stays as it is.

        `grace` in seconds and `signal` override the job's own; `user` is who wants it. Any number
        of callers may stop a job at once, each in its own way: every signal is sent, and the grace
        period that ends first counts. A caller that is cancelled does not undo the stop.
        Raises InvalidArgument, JobNotFound, ShimUnavailable, Unavailable or ShuttingDown.
        """
        return await self._control.stop(job_id, grace, signal, user)

    async def wait_job(self, job_id: str, timeout: float | None = None) -> JobStatus:  # noqa: ASYNC109 - it is no failure
        """Return the status of a job once it has ended, or as it is after `timeout` seconds.

        None waits as long as it takes, 0 not at all. Raises InvalidArgument, JobNotFound (also if
        the job turns out not to have been started) and ShuttingDown when the Service is being left.
        """
        return await self._control.wait(job_id, timeout)

    async def signal_job(
        self, job_id: str, signum: int, *, all_processes: bool = False, user: str = ""
    ) -> Job:
        """Send a signal to a job's main process, or to all of its processes, and return the job.

        What the job makes of it is its own affair: one that dies of it has *exited*, by a signal.
        A paused job hears it when it goes on, but SIGKILL at once. Raises InvalidArgument,
        JobNotFound, FailedPrecondition (it has ended, or its main process is not known) or
        ResourceExhausted.
        """
        if self._closing:
            raise ShuttingDown(f"cannot signal job {job_id}: the server is shutting down")
        return await self._control.signal(job_id, signum, user, all_processes=all_processes)

    # Removing

    async def remove_job(self, job_id: str, *, user: str = "") -> Job:
        """Remove a finished job with its output, and return it as it was.

        From the moment it is decided nobody finds the job any more, and its request_id is free.
        Streams of its output that are open go on to their end. `user` is who wants it. A caller
        that is cancelled meanwhile does not undo it.

        Raises InvalidArgument, JobNotFound, FailedPrecondition (the job runs, or something else is
        in its directory: then nothing has changed; or not all of its files could be removed, which
        is tried again), ResourceExhausted or Unavailable.
        """
        if self._closing:
            raise ShuttingDown(f"cannot remove job {job_id}: the server is shutting down")
        job = await self.fetch_job(job_id)
        refuse_running(job)
        await self._changes.run(job.id, lambda: self._removal.remove(job, user))
        return job

    def _prepare_removal(self) -> None:
        ended = EndedJobs(self._store)
        in_thread = partial(self._in_thread, self._disk)
        self._removal = Removal(
            ended=ended,
            log_dir=self._log_dir,
            in_thread=in_thread,
            tell=lambda job, user: self._ledger.tell_removal(job.record, user),
            on_removed=self._removed,
        )
        self._retainer = Retainer(
            self._retention,
            ended=ended,
            removal=self._removal,
            readers=self._readers,
            log_dir=self._log_dir,
            fetch=self._fetch_recorded,
            in_thread=in_thread,
        )

    def _reader_left(self, job_id: str) -> None:
        self._retainer.reader_left(job_id)

    def _removed(self, job: Job, user: str) -> None:
        self._ledger.removed(job.id)
        self._report(Change("removed", job, user))

    # Changing a running job

    async def update_limits(self, job_id: str, limits: cgroups.Limits, *, user: str = "") -> Job:
        """Change limits of a running job and return it; its record has the limits in force.

        What `limits` leaves out stays as it is; MAX takes a limit away. All of them are applied and
        read back, or none is. `user` is who wants it. A caller that is cancelled meanwhile does not
        undo it. Raises InvalidArgument, JobNotFound, FailedPrecondition (the job has ended) and its
        kinds ControllerUnavailable and LimitNotApplied, or ResourceExhausted.
        """
        return await self._change(
            job_id, "change the limits of", lambda job: self._update_limits(job, limits, user)
        )

    async def pause_job(self, job_id: str, *, user: str = "") -> Job:
        """Freeze a running job, and return it when the kernel says that all of it is frozen.

        It stays *running*, its time limit goes on, and so does a pause after a restart of the
        server. One that is paused stays as it is. `user` is who wants it. Raises InvalidArgument,
        JobNotFound, FailedPrecondition (the job has ended, or cannot be frozen now) or
        ResourceExhausted.
        """
        return await self._change(
            job_id, "pause", lambda job: self._set_paused(job, user, paused=True)
        )

    async def resume_job(self, job_id: str, *, user: str = "") -> Job:
        """Let a paused job go on; see `pause_job`."""
        return await self._change(
            job_id, "resume", lambda job: self._set_paused(job, user, paused=False)
        )

    def _on_change(self, change: Change) -> None:
        """Tell of what has changed nothing in the registry; the ledger has told of the rest."""
        self._ledger.note(
            EventType(change.event), change.job.record, change.user, signal=change.signal
        )
        self._report(change)

    async def _change(
        self, job_id: str, doing: str, action: Callable[[Job], Awaitable[None]]
    ) -> Job:
        if self._closing:
            raise ShuttingDown(f"cannot {doing} job {job_id}: the server is shutting down")
        job = await self._fetch_started(job_id)

        async def change() -> None:
            if job.finished:
                raise FailedPrecondition(f"cannot {doing} job {job.id}: it has ended")
            await action(job)

        await self._changes.run(job.id, change)
        return job

    async def _update_limits(self, job: Job, limits: cgroups.Limits, user: str) -> None:
        # In a thread: the kernel may have to reclaim gigabytes before it answers.
        changed = await self._in_thread(self._threads, self.cgroups.update_limits, job.id, limits)
        if job.finished:
            raise FailedPrecondition(f"cannot change the limits of job {job.id}: it has ended")
        warnings = self.cgroups.warnings(changed.limits)
        record = replace(job.record, limits=changed.limits, warnings=warnings)
        try:
            self._ledger.update(record, EventType.LIMITS_UPDATED, user)
        except BaseException:
            await self._in_thread(self._threads, changed.undo)
            self._release_protection()
            raise
        job.publish(record)
        self._report(Change("limits updated", job, user))

    async def _in_thread(
        self, threads: ThreadPoolExecutor, action: Callable[..., _Result], *arguments: object
    ) -> _Result:
        # Not in the event loop's own threads: they look users up, also while limits are changed.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, partial(action, *arguments))

    def _read_limits_again(self) -> None:
        """Record the limits that are in force: an earlier server may have died changing some."""
        for job in self._custody.jobs():
            try:
                limits = self.cgroups.cgroup(job.id).limits()
            except (OSError, ValueError):
                log.exception("cannot read the limits of job %s", job.id)
                continue
            if job.status.state is State.RUNNING and limits != job.record.limits:
                warnings = self.cgroups.warnings(limits)
                job.publish(replace(job.record, limits=limits, warnings=warnings))
                self._ledger.update(job.record, EventType.LIMITS_UPDATED)

    async def _set_paused(self, job: Job, user: str, *, paused: bool) -> None:
        cgroup = self.cgroups.cgroup(job.id)
        if paused:
            self._refuse_if_stopping(job)
        changed = await freezer.set_frozen(cgroup, frozen=paused)
        if paused and self._custody.is_stopping(job):
            # A stop has come meanwhile: its grace period is for ending, not for standing still.
            await freezer.set_frozen(cgroup, frozen=False)
            self._refuse_if_stopping(job)
        if changed:
            self._on_change(Change("paused" if paused else "resumed", job, user))

    def _refuse_if_stopping(self, job: Job) -> None:
        if self._custody.is_stopping(job):
            raise FailedPrecondition(f"cannot pause job {job.id}: it is being stopped")

    async def _finish_freezing(self, job: Job) -> None:
        try:
            await freezer.finish_freezing(self.cgroups.cgroup(job.id))
        except (OSError, ValueError):
            log.exception("cannot tell whether job %s is paused", job.id)

    async def _fetch_started(self, job_id: str) -> Job:
        """Return a job, once it is known whether its command could be executed."""
        job = await self.fetch_job(job_id)
        if job.id in self._starting:
            await asyncio.wait([self._starting[job.id]])
            job = await self.fetch_job(job_id)
        return job

    # Watching

    def watch(
        self, resume_token: str = "", *, job_id: str = "", owner: str = ""
    ) -> AsyncGenerator[Told, None]:
        """Yield what happens to jobs, to one job or to an owner's; see `Watching.watch`."""
        return self._ledger.watching.watch(resume_token, job_id=job_id, owner=owner)

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return len(self._custody)

    async def fetch_job(self, job_id: str) -> Job:
        """Return a job. Raises InvalidArgument (a malformed id) or JobNotFound."""
        job_id = parse_job_id(job_id)
        job = self._find(job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    def _find(self, job_id: str) -> Job | None:
        if (live := self._custody.get(job_id) or self._ledger.unwritten(job_id)) is not None:
            return live
        return None if job_id in self._leftovers else self._fetch_recorded(job_id)

    def _fetch_recorded(self, job_id: str) -> Job | None:
        record = self._store.get(job_id)
        return None if record is None else self._job(record)

    def _knows(self, job_id: str) -> bool:
        return self._find(job_id) is not None

    async def list_jobs(
        self, asked: JobFilter | None = None, *, page_size: int = 0, page_token: str = ""
    ) -> Page:
        """Return a page of the jobs that match, newest first.

        It has at most `page_size` jobs (0: 100, at most 1000), and fewer if they are large or far
        between; only where `next_page_token` is empty there are no more. That token is for the
        next page of the same filters. Raises InvalidArgument, ResourceExhausted, Unavailable or
        RegistryDamaged.
        """
        return await self._catalog.page(asked or JobFilter(), page_size, page_token)

    def _job(self, record: JobRecord) -> Job:
        return Job(
            record,
            log_dir=self._log_dir,
            watcher=self._watcher,
            cgroup=self.cgroups.cgroup(record.id),
            readers=self._readers,
        )

    # What the custody reports

    def _running(self, job: Job, record: JobRecord) -> None:
        self._ledger.update(record, EventType.STARTED, record.owner)
        steps.reached("server.start.running_recorded")
        job.publish(record)
        self._report(Change("started", job, record.owner))

    def _stop_accepted(self, job: Job, record: JobRecord) -> None:
        job.publish(record)
        try:
            self._store.update(record)
        except (sqlite3.Error, JobWorkerError):
            # A full disk is no reason to let a job go on; but only this server knows of the stop.
            log.exception("cannot record the stop of job %s in the registry", job.id)

    def _ended(self, job: Job, record: JobRecord) -> None:
        if job.status.state is State.PENDING:  # Its end overtook the news that it runs.
            self._report(Change("started", job, record.owner))
        self._ledger.end(job, record)
        self._places.give_back(job.id)
        self._release_protection()
        job.publish(record)
        self._report(Change("ended", job))
        steps.reached("server.end.told")
        self._retainer.wake()

    def _release_protection(self) -> None:
        try:
            self.cgroups.release_protection()
        except (OSError, ValueError):
            log.exception("memory that ended jobs had protected stays so; trying again later")

    async def _settle(self) -> None:
        """Let launches and changes come to their end; an execve that hangs is not waited for."""
        launches = [*self._starting.values(), *self._abandoning.values()]
        if under_way := [*launches, *self._changes.under_way]:
            await asyncio.wait(under_way, timeout=_LEAVING_PATIENCE)
        await self._changes.close()
        for task in self._abandoning.values():
            task.cancel()  # The next start removes what is left.


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _digest(stdin: bytes) -> str:
    return hashlib.sha256(stdin).hexdigest() if stdin else ""
