"""What the shim is handed to start a job: the description, and open descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from jobworker import output, shim, steps
from jobworker.errors import CommandNotFound
from jobworker.job import accounts
from jobworker.job.spec import executables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jobworker import cgroups
    from jobworker.job.record import JobRecord
    from jobworker.job.spec import JobSpec


async def look_up(user: str) -> accounts.Account:
    """Return the account a job is to run as. Raises UserNotFound."""
    # A named user may be looked up over the network; our own is in /etc/passwd.
    return await asyncio.to_thread(accounts.look_up, user) if user else accounts.look_up(user)


def describe(
    record: JobRecord, spec: JobSpec, cgroup: cgroups.Cgroup, account: accounts.Account
) -> shim.Launch:
    """Return the description of a job's start. Raises CommandNotFound if its PATH is empty."""
    env = {**account.environment(), **spec.env, "JOBWORKER_JOB_ID": record.id}
    candidates = executables(spec.command, env["PATH"])
    if not candidates:
        raise CommandNotFound(
            f"cannot find the command {spec.command}: the job's PATH is empty; give the whole path"
        )
    own = account.groups is None
    return shim.Launch(
        job_id=record.id,
        executables=candidates,
        argv=[spec.command, *spec.args],
        env=env,
        working_directory=spec.working_directory,
        cgroup_path=cgroup.path,
        uid=None if own else account.uid,
        gid=None if own else account.gid,
        groups=None if account.groups is None else list(account.groups),
        timeout=spec.timeout,
        stop_signal=spec.stop.signal,
        stop_grace=spec.stop.grace,
        output_max_bytes=record.output_max_bytes,
        split_stderr=spec.split_stderr,
    )


@contextlib.contextmanager
def descriptors(
    log_dir: Path, record: JobRecord, cgroup: cgroups.Cgroup, stdin: bytes
) -> Iterator[dict[str, int]]:
    """Make a job's log files, and open all that `shim.Client.launch` wants, until the block ends.

    Raises OSError and what `output.Log.create` raises.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(
            output.Log.create(
                log_dir,
                record.id,
                split_stderr=record.spec.split_stderr,
                capped=record.output_max_bytes is not None,
            )
        )
        steps.reached("server.start.directory_made")
        directory = cgroup.open()
        stack.callback(os.close, directory)
        content = _stdin(stdin)
        stack.callback(os.close, content)
        fds = {"stdin": content, "output": log.fd, "cgroup": directory, "job_dir": log.dir_fd}
        yield fds if log.stderr_fd is None else fds | {"stderr": log.stderr_fd}


def _stdin(content: bytes) -> int:
    """Return a descriptor from which `content` can be read once, then end of file."""
    if not content:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
