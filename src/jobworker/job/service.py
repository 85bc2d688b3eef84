"""Starting, stopping and finding jobs: what a user of the library has in hand."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from jobworker import cgroups, output, shim, steps
from jobworker.errors import FailedPrecondition, JobNotFound, ShuttingDown
from jobworker.ids import parse_job_id
from jobworker.job.abandoning import Abandoning
from jobworker.job.catalog import Catalog, Page
from jobworker.job.control import Control
from jobworker.job.custody import Custody
from jobworker.job.job import Job
from jobworker.job.ledger import Ledger
from jobworker.job.lock import DirectoryLock
from jobworker.job.news import Change, News
from jobworker.job.pausing import Pausing
from jobworker.job.readers import Readers
from jobworker.job.registry.ended import EndedJobs
from jobworker.job.registry.listing import JobFilter
from jobworker.job.registry.reader import RegistryReader
from jobworker.job.registry.store import Store
from jobworker.job.removal import Removal, refuse_running
from jobworker.job.retainer import Retainer
from jobworker.job.retention import KEEP_ALL, Retention
from jobworker.job.slots import RunningLimits, Slots
from jobworker.job.starting import Starting
from jobworker.job.threads import Threads
from jobworker.job.turns import Turns
from jobworker.job.updating import Updating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType

    from jobworker.job.event import Told
    from jobworker.job.record import JobRecord
    from jobworker.job.spec import JobSpec
    from jobworker.job.state import JobStatus

DEFAULT_LOG_DIR: Final = Path("/var/log/jobworker")
DEFAULT_STATE_DIR: Final = Path("/var/lib/jobworker")
DEFAULT_RUN_DIR: Final = Path("/run/jobworker")
DEFAULT_CGROUP_ROOT: Final = Path("/cgroup2")

_THREADS: Final = 4
"""How many changes of limits may wait for the kernel at a time."""
_LEAVING_PATIENCE: Final = 5.0
"""Seconds that what is under way is given to come to its end when the Service is left."""


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
        self._slots = Slots(running)
        self._readers = Readers(self._reader_left)
        self._on_change = on_change
        self._connect = connect
        self._turns = Turns()
        self._closing = False
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for directory in dict.fromkeys((self._run_dir, self._state_dir)):
                stack.enter_context(DirectoryLock.acquire(directory))
            steps.reached("server.recovery.locked")
            # Left before the locks are: until the kernel has answered, no other server may come.
            waiting = stack.enter_context(Threads(_THREADS, "limits"))
            disk = stack.enter_context(Threads(1, "removal"))
            output.prepare(self._log_dir)
            self._open_registry(stack)
            steps.reached("server.recovery.registry_opened")
            self._assemble(waiting, disk)
            self.cgroups.setup()
            steps.reached("server.recovery.cgroups_ready")
            self._watcher = stack.enter_context(output.Watcher())
            stack.push_async_callback(self._custody.close)
            await self._take_up(self._store.unfinished())
            stack.push_async_callback(self._settle)
            stack.push_async_callback(_cancel, asyncio.create_task(self._retainer.run()))
            steps.reached("server.recovery.done")
            self._exit = stack.pop_all()
        return self

    def _open_registry(self, stack: AsyncExitStack) -> None:
        self._store = Store.open(self._state_dir / "jobs.db")
        stack.callback(self._store.close)
        self._ledger = Ledger(self._store, lambda job_id: self._find(job_id) is not None)
        stack.push_async_callback(self._ledger.close)
        reader = RegistryReader(self._store.path)
        stack.callback(reader.close)
        self._catalog = Catalog(reader, fetch=self._find, unrecorded=self._ledger.all_unwritten)

    def _assemble(self, waiting: Threads, disk: Threads) -> None:
        """Make the parts that do the work, on the registry that is open."""
        self._news = News(self._store, self._ledger, self._on_change)
        self._abandoning = Abandoning(
            self._store,
            self.cgroups,
            self._log_dir,
            drop=self._drop,
            on_gone=self._ledger.watching.wake,  # Who watches that job waits for nothing.
        )
        self._custody = Custody(
            run_dir=self._run_dir,
            log_dir=self._log_dir,
            cgroups=self.cgroups,
            on_running=self._news.started,
            on_stop=self._news.stop_accepted,
            on_ended=self._ended,
            abandon=self._abandoning.abandon,
            connect=self._connect,
        )
        self._starting = Starting(
            self._store,
            self._custody,
            self.cgroups,
            self._log_dir,
            slots=self._slots,
            abandoning=self._abandoning,
            output_max_bytes=self._output_max_bytes,
            make_job=self._job,
        )
        self._control = Control(
            self._custody,
            self.cgroups,
            self._news,
            fetch=self.fetch_job,
            fetch_started=self._fetch_started,
        )
        self._updating = Updating(self.cgroups, self._ledger, self._news, waiting)
        self._pausing = Pausing(self._custody, self.cgroups, self._news)
        ended = EndedJobs(self._store)
        self._removal = Removal(
            ended=ended,
            log_dir=self._log_dir,
            in_thread=disk.run,
            tell=lambda job, user: self._ledger.tell_removal(job.record, user),
            on_removed=self._news.removed,
        )
        self._retainer = Retainer(
            self._retention,
            ended=ended,
            removal=self._removal,
            readers=self._readers,
            log_dir=self._log_dir,
            fetch=self._fetch_recorded,
            in_thread=disk.run,
        )

    async def _take_up(self, unfinished: list[JobRecord]) -> None:
        """Take up the jobs of an earlier server where it has left them."""
        self._slots.fill((record.id, record.owner) for record in unfinished)
        await self._custody.open([self._job(record) for record in unfinished])
        self._updating.read_again(self._custody.jobs())
        await asyncio.gather(*map(self._pausing.finish, self._custody.jobs()))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        self._starting.leave()
        self._abandoning.leave()
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
        job_id = await self._starting.start(spec, owner)
        if (launch := self._starting.launch(job_id)) is not None:
            return await asyncio.shield(launch)
        return await self.fetch_job(job_id)

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
        A paused job hears it when it goes on; SIGKILL, and a fatal signal that it has no handler
        for, end it at once. Raises InvalidArgument, JobNotFound, FailedPrecondition (it has ended,
        or its main process is not known) or ResourceExhausted.
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
        await self._turns.run(job.id, lambda: self._removal.remove(job, user))
        return job

    # Changing a running job

    async def update_limits(self, job_id: str, limits: cgroups.Limits, *, user: str = "") -> Job:
        """Change limits of a running job and return it; its record has the limits in force.

        What `limits` leaves out stays as it is; MAX takes a limit away. All of them are applied and
        read back, or none is. `user` is who wants it. A caller that is cancelled meanwhile does not
        undo it. Raises InvalidArgument, JobNotFound, FailedPrecondition (the job has ended) and its
        kinds ControllerUnavailable and LimitNotApplied, or ResourceExhausted.
        """
        return await self._change(
            job_id, "change the limits of", lambda job: self._updating.update(job, limits, user)
        )

    async def pause_job(self, job_id: str, *, user: str = "") -> Job:
        """Freeze a running job, and return it when the kernel says that all of it is frozen.

        It stays *running*, its time limit goes on, and so does a pause after a restart of the
        server. One that is paused stays as it is. `user` is who wants it. Raises InvalidArgument,
        JobNotFound, FailedPrecondition (the job has ended, or cannot be frozen now) or
        ResourceExhausted.
        """
        return await self._change(job_id, "pause", lambda job: self._pausing.pause(job, user))

    async def resume_job(self, job_id: str, *, user: str = "") -> Job:
        """Let a paused job go on; see `pause_job`."""
        return await self._change(job_id, "resume", lambda job: self._pausing.resume(job, user))

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

        await self._turns.run(job.id, change)
        return job

    async def _fetch_started(self, job_id: str) -> Job:
        """Return a job, once it is known whether its command could be executed."""
        job = await self.fetch_job(job_id)
        if (launch := self._starting.launch(job.id)) is not None:
            await asyncio.wait([launch])
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
        return self._fetch_recorded(job_id) if self._abandoning.get(job_id) is None else None

    def _fetch_recorded(self, job_id: str) -> Job | None:
        record = self._store.get(job_id)
        return None if record is None else self._job(record)

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

    # What becomes of jobs

    def _drop(self, job: Job) -> None:
        self._custody.drop(job)
        self._slots.give_back(job.id)

    def _ended(self, job: Job, record: JobRecord) -> None:
        self._slots.give_back(job.id)
        self._updating.release_protection()
        self._news.ended(job, record)
        self._retainer.wake()

    def _reader_left(self, job_id: str) -> None:
        self._retainer.reader_left(job_id)

    async def _settle(self) -> None:
        """Let launches and changes come to their end; an execve that hangs is not waited for."""
        failed = self._abandoning.under_way
        if under_way := [*self._starting.under_way, *failed, *self._turns.under_way]:
            await asyncio.wait(under_way, timeout=_LEAVING_PATIENCE)
        await self._turns.close()
        self._abandoning.cancel()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
