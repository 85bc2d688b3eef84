"""Starting, stopping and finding jobs: the part that joins registry, cgroups, shim and output."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
import time
import uuid
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from jobworker import cgroups, output, shim
from jobworker.errors import (
    JobNotFound,
    JobWorkerError,
    RequestConflict,
    ResourceExhausted,
    ShimUnavailable,
    ShuttingDown,
)
from jobworker.job import accounts, outcome, processes
from jobworker.job.job import Job
from jobworker.job.lock import DirectoryLock
from jobworker.job.orphan import Orphan
from jobworker.job.record import JobRecord, Process
from jobworker.job.spec import JobSpec, StopPolicy, check_seconds, executables, parse_job_id
from jobworker.job.state import Event, JobStatus, State, transition
from jobworker.job.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

log = logging.getLogger(__name__)

DEFAULT_LOG_DIR: Final = Path("/var/log/jobworker")
DEFAULT_STATE_DIR: Final = Path("/var/lib/jobworker")
DEFAULT_RUN_DIR: Final = Path("/run/jobworker")
DEFAULT_CGROUP_ROOT: Final = Path("/cgroup2")

_RECONNECT_DELAY: Final = 0.2
_SHIM_PATIENCE: Final = 10.0
"""Seconds."""
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


class Service:
    """Jobs on this host. Use it as an async context manager; it belongs to one event loop.

    Entering takes the locks, makes the directories and the cgroup, reaches the shim (starting one
    if there is none) and finds the jobs of an earlier server again. Leaving lets the jobs go on.
    `on_finished` is called with each job that has ended, after the registry knows.
    """

    def __init__(
        self,
        *,
        log_dir: Path = DEFAULT_LOG_DIR,
        state_dir: Path = DEFAULT_STATE_DIR,
        run_dir: Path = DEFAULT_RUN_DIR,
        cgroup_root: Path = DEFAULT_CGROUP_ROOT,
        on_finished: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        # Absolute: the shim has another working directory.
        self._log_dir = log_dir.absolute()
        self._state_dir = state_dir.absolute()
        self._run_dir = run_dir.absolute()
        self.cgroups = cgroups.Service(cgroup_root.absolute())
        self._on_finished = on_finished
        self._live: dict[str, Job] = {}
        self._starting: dict[str, asyncio.Task[Job]] = {}
        self._orphans: dict[str, Orphan] = {}
        self._orphan_tasks: set[asyncio.Task[None]] = set()
        self._pidfds: dict[str, int] = {}
        self._stops: dict[str, StopPolicy] = {}
        self._closing = False
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for directory in {self._run_dir, self._state_dir}:
                stack.enter_context(DirectoryLock.acquire(directory))
            output.prepare(self._log_dir)
            self._store = Store.open(self._state_dir / "jobs.db")
            stack.callback(self._store.close)
            self.cgroups.setup()
            self._watcher = stack.enter_context(output.Watcher())
            for record in self._store.unfinished():
                self._live[record.id] = self._job(record)
            stack.push_async_callback(self._disconnect)
            self._connection = asyncio.create_task(self._connect())
            await asyncio.shield(self._connection)
            stack.push_async_callback(self._settle)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        await self._exit.aclose()

    # Starting

    async def start_job(self, spec: JobSpec, *, owner: str = "") -> Job:
        """Start a job and return it once its command has been executed.

        The same `spec.request_id` of the same owner attaches to the job it started before. A caller
        that is cancelled meanwhile does not undo the start.

        Raises InvalidArgument, FailedPrecondition (and its kinds), RequestConflict,
        ResourceExhausted or Unavailable; then nothing of the job is left behind.
        """
        spec.check()
        if self._closing:
            raise ShuttingDown("cannot start a job: the server is shutting down")
        job_id = self._find_request(spec, owner) or self._begin(spec, owner)
        if job_id in self._starting:
            return await asyncio.shield(self._starting[job_id])
        return await self.fetch_job(job_id)

    def _find_request(self, spec: JobSpec, owner: str) -> str | None:
        found = self._store.find_request(owner, spec.request_id) if spec.request_id else None
        if found is None:
            return None
        record, fingerprint = found
        if fingerprint != spec.fingerprint():
            raise RequestConflict(
                f"request_id {spec.request_id!r} was used for job {record.id}, which is a "
                "different request; use a new request_id"
            )
        return record.id

    def _begin(self, spec: JobSpec, owner: str) -> str:
        """Record the intent, before anything is created, and start the launch."""
        record = JobRecord(
            id=str(uuid.uuid4()),
            owner=owner,
            spec=replace(spec, stdin=b""),
            created_at=time.time(),
            warnings=tuple(spec.limits.warnings()),
        )
        self._store.insert(record, spec.fingerprint())
        job = self._live[record.id] = self._job(record)
        task = asyncio.create_task(self._launch(job, spec))
        self._starting[job.id] = task
        task.add_done_callback(lambda task: self._started(job, task))
        return job.id

    def _started(self, job: Job, task: asyncio.Task[Job]) -> None:
        del self._starting[job.id]
        if not task.cancelled():
            task.exception()  # The callers have it; if they are gone, nobody misses it.

    async def _launch(self, job: Job, spec: JobSpec) -> Job:
        try:
            account = await _look_up(spec.user)
            client = await self._client()
            cgroup = self.cgroups.create_cgroup(job.id, spec.limits)
            if spec.limits != cgroups.Limits():
                job.publish(replace(job.record, limits=cgroup.limits()))
            launched = await self._hand_over(client, job, spec, cgroup, account)
            self._adopt(job, launched)
        except BaseException as error:
            try:
                await self._abandon(job)
            except (OSError, sqlite3.Error, JobWorkerError):
                log.exception("cannot remove what is left of job %s; the next start will", job.id)
            if isinstance(error, OSError) and error.errno in _EXHAUSTED:
                raise ResourceExhausted(f"cannot start the job: {error}") from error
            raise
        return job

    async def _hand_over(
        self,
        client: shim.Client,
        job: Job,
        spec: JobSpec,
        cgroup: cgroups.Cgroup,
        account: accounts.Account,
    ) -> shim.Launched:
        env = {**account.environment(), **spec.env, "JOBWORKER_JOB_ID": job.id}
        own = account.groups is None
        launch = shim.Launch(
            job_id=job.id,
            executables=executables(spec.command, env["PATH"]),
            argv=[spec.command, *spec.args],
            env=env,
            working_directory=spec.working_directory,
            cgroup_path=str(cgroup.path),
            uid=None if own else account.uid,
            gid=None if own else account.gid,
            groups=None if account.groups is None else list(account.groups),
            timeout=spec.timeout,
            stop_signal=spec.stop.signal,
            stop_grace=spec.stop.grace,
        )
        with ExitStack() as stack:
            log_file = stack.enter_context(output.Log.create(self._log_dir, job.id))
            directory = cgroup.open()
            stack.callback(os.close, directory)
            stdin = _stdin(spec.stdin)
            stack.callback(os.close, stdin)
            return await client.launch(
                launch,
                stdin=stdin,
                output=log_file.fd,
                cgroup=directory,
                job_dir=log_file.dir_fd,
            )

    def _adopt(self, job: Job, launched: shim.Launched) -> None:
        """Take up a job that the shim has executed."""
        if job.finished:  # Its end overtook the answer.
            os.close(launched.pidfd)
            return
        self._close_pidfd(job)
        self._pidfds[job.id] = launched.pidfd
        if job.status.state is State.RUNNING:
            return
        record = replace(
            job.record,
            status=JobStatus(transition(job.status.state, Event.START)),
            process=Process(
                boot_id=processes.boot_id(), pid=launched.pid, start_time=launched.start_time
            ),
            started_at=launched.started_at,
        )
        self._store.update(record)
        job.publish(record)

    async def _abandon(self, job: Job) -> None:
        """Remove every trace of a job that did not start."""
        self._live.pop(job.id, None)
        self._close_pidfd(job)
        cgroup = self.cgroups.cgroup(job.id)
        cgroup.kill()
        await processes.wait_empty(cgroup)
        self.cgroups.remove_cgroup(job.id)
        output.remove(self._log_dir, job.id)
        self._store.delete(job.id)

    # Stopping and finding

    async def stop_job(self, job_id: str, *, grace: float | None = None) -> Job:
        """End a job and return it once it has ended; a finished job stays as it is.

        `grace` in seconds overrides the job's own. A caller that is cancelled meanwhile does not
        undo the stop. Raises InvalidArgument, JobNotFound or ShimUnavailable.
        """
        if grace is not None:
            check_seconds("grace", grace)
        job = await self.fetch_job(job_id)
        if job.id in self._starting:
            await asyncio.wait([self._starting[job.id]])
            job = await self.fetch_job(job_id)
        if not job.finished:
            policy = job.spec.stop if grace is None else replace(job.spec.stop, grace=grace)
            await self._stop(job, policy)
            await job.wait()
        return job

    async def _stop(self, job: Job, policy: StopPolicy) -> None:
        self._stops[job.id] = policy
        try:
            client = await self._client()
            if job.id not in self._orphans and not job.finished:
                await client.stop(job.id, signal=policy.signal, grace=policy.grace)
        except JobNotFound:
            pass  # It has just ended; the shim's event follows.
        except ShimUnavailable:
            await self._client()  # Now the job is an orphan, or its end is known.
        if (orphan := self._orphans.get(job.id)) is not None:
            orphan.stop(policy)

    async def fetch_job(self, job_id: str) -> Job:
        """Return a job. Raises InvalidArgument (a malformed id) or JobNotFound."""
        job_id = parse_job_id(job_id)
        if (live := self._live.get(job_id)) is not None:
            return live
        record = self._store.get(job_id)
        if record is None:
            raise JobNotFound(job_id)
        return self._job(record)

    def _job(self, record: JobRecord) -> Job:
        return Job(record, self._log_dir, self._watcher)

    # Ends

    def _ended(self, end: shim.ExitRecord) -> None:
        job = self._live.get(end.job_id)
        if job is None or job.finished:
            return
        self._finish(
            job,
            replace(
                job.record,
                status=outcome.conclude(job.status.state, end),
                started_at=end.started_at,
                ended_at=end.ended_at,
                output_size=end.output_size,
                usage=end.usage,
            ),
        )

    def _finish(self, job: Job, record: JobRecord) -> None:
        self._close_pidfd(job)
        self._stops.pop(job.id, None)
        try:
            self._store.update(record)
        except (sqlite3.Error, JobWorkerError):
            # The exit record is on disk: the next start reads it. Until then memory knows.
            log.exception("cannot record the end of job %s in the registry", job.id)
        else:
            self._live.pop(job.id, None)
        job.publish(record)
        self._on_finished(job)

    def _close_pidfd(self, job: Job) -> None:
        if (pidfd := self._pidfds.pop(job.id, None)) is not None:
            os.close(pidfd)

    # The shim

    async def _client(self) -> shim.Client:
        """Return the connection to the shim, once there is one and all jobs are accounted for."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._connection), _SHIM_PATIENCE)
        except TimeoutError:
            raise ShimUnavailable(
                f"cannot reach a shim within {_SHIM_PATIENCE} s; see {self._run_dir}/shim.log"
            ) from None

    async def _connect(self) -> shim.Client:
        client = await shim.Client.connect(
            self._run_dir, on_ended=self._ended, on_disconnect=self._disconnected
        )
        for job in list(self._live.values()):
            if job.id not in self._starting and job.id not in self._orphans and not job.finished:
                await self._reconcile(job, client)
        return client

    def _disconnected(self) -> None:
        if not self._closing:
            log.error("the shim is gone; starting another one")
            self._connection = asyncio.create_task(self._reconnect())

    async def _reconnect(self) -> shim.Client:
        while True:
            try:
                return await self._connect()
            except ShimUnavailable:
                log.exception("cannot reach a shim; trying again")
                await asyncio.sleep(_RECONNECT_DELAY)

    async def _disconnect(self) -> None:
        self._connection.cancel()
        with contextlib.suppress(asyncio.CancelledError, JobWorkerError):
            await (await self._connection).close()
        for task in self._orphan_tasks:
            task.cancel()
        await asyncio.gather(*self._orphan_tasks, return_exceptions=True)
        for pidfd in self._pidfds.values():
            os.close(pidfd)

    async def _settle(self) -> None:
        """Let the launches under way come to their end."""
        if self._starting:
            await asyncio.wait(list(self._starting.values()))

    # Finding jobs again

    async def _reconcile(self, job: Job, client: shim.Client) -> None:
        """Find out what became of an unfinished job while this server was not looking."""
        if job.id in client.jobs:
            try:
                self._adopt(job, await client.attach(job.id))
            except JobNotFound:
                pass  # It ended since; its record is on disk, or its event is on the way.
            else:
                return
        if (end := self._read_end(job)) is not None:
            self._ended(end)
        elif job.status.state is State.PENDING:
            await self._abandon(job)
        elif not job.finished:
            self._follow_orphan(job)

    def _read_end(self, job: Job) -> shim.ExitRecord | None:
        try:
            return shim.read_exit_record(self._log_dir / job.id)
        except JobWorkerError:
            log.exception("cannot read the exit record of job %s", job.id)
            return None

    def _follow_orphan(self, job: Job) -> None:
        process = job.record.process
        pidfd = self._pidfds.pop(job.id, None)
        if pidfd is None and process is not None:
            pidfd = processes.open_pidfd(process)
        orphan = self._orphans[job.id] = Orphan(self.cgroups.cgroup(job.id), pidfd)
        if job.spec.timeout is not None and job.record.started_at is not None:
            left = job.record.started_at + job.spec.timeout - time.time()
            orphan.limit(left, job.spec.stop)
        if (policy := self._stops.get(job.id)) is not None:
            orphan.stop(policy)
        task = asyncio.create_task(self._await_orphan(job, orphan))
        self._orphan_tasks.add(task)
        task.add_done_callback(self._orphan_tasks.discard)

    async def _await_orphan(self, job: Job, orphan: Orphan) -> None:
        cgroup = self.cgroups.cgroup(job.id)
        await orphan.wait_ended()
        usage = cgroup.usage()
        size = job.output_size() or 0
        self.cgroups.remove_cgroup(job.id)
        del self._orphans[job.id]
        self._finish(
            job,
            replace(
                job.record,
                status=outcome.conclude_orphan(job.record, orphan.told, processes.boot_id()),
                ended_at=time.time(),
                output_size=size,
                usage=usage,
            ),
        )


async def _look_up(user: str) -> accounts.Account:
    # A named user may be looked up over the network; root is in /etc/passwd.
    return await asyncio.to_thread(accounts.look_up, user) if user else accounts.look_up(user)


def _stdin(content: bytes) -> int:
    """Return a descriptor from which `content` can be read once, then end of file."""
    if not content:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
