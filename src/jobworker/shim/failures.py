"""What the shim's errors mean to a user: error reply → error of the domain.

Pure, but for a look at the host that tells a missing command from a missing interpreter.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from jobworker.errors import (
    CgroupUnavailable,
    CommandNotExecutable,
    CommandNotFound,
    FailedPrecondition,
    InvalidArgument,
    JobNotFound,
    JobWorkerError,
    WorkingDirectoryUnusable,
)
from jobworker.exhaustion import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.shim.wire import Launch

_MEANINGS: Final = {
    errno.EAGAIN: "the limit on processes is reached",  # RLIMIT_NPROC, pids.max, kernel.pid_max
    errno.EMFILE: "the shim has no file descriptor left; raise its limit (LimitNOFILE=)",
    errno.ENOSPC: "a limit of the host's name spaces or cgroups is reached",
}
"""What these numbers mean to clone(2) and execve(2), and of the shim."""

_NOT_EXECUTABLE: Final = {
    errno.EACCES: "it is not an executable file for the job's user; look at its mode, at its"
    " directories' and for noexec mounts",
    errno.EPERM: "the kernel does not permit it to the job's user",
    errno.ENOEXEC: "it is neither a program for this machine nor a script with a #! line",
    errno.ETXTBSY: "a process has it open for writing",
    errno.ELOOP: "there are too many symbolic links on the way to it",
}


def launch_error(
    error: dict[str, Any], launch: Launch, exists: Callable[[str], bool] = os.path.exists
) -> JobWorkerError:
    """Return the error to raise for a refused or failed launch. `exists` looks at the host."""
    kind, number = error.get("kind"), int(error.get("errno") or 0)
    if kind == "bad_request":
        return JobWorkerError(f"the shim did not accept the launch: {error.get('message')}")
    if (lack := exhausted(f"start {launch.argv[0]}", number, meanings=_MEANINGS)) is not None:
        return lack
    if kind == "exec":
        return _exec_error(number, launch, exists)
    problem = os.strerror(number)
    if kind == "chdir":
        return WorkingDirectoryUnusable(
            f"cannot enter the working directory {launch.working_directory}: {problem}"
        )
    if kind == "credentials":
        return FailedPrecondition(f"cannot run the command as user {launch.uid}: {problem}")
    if kind == "clone":
        return CgroupUnavailable(f"cannot start a process in {launch.cgroup_path}: {problem}")
    return FailedPrecondition(f"cannot prepare the start of {launch.argv[0]}: {problem}")


def job_error(error: dict[str, Any], job_id: str) -> JobWorkerError:
    """Return the error to raise for a request about a job that was launched before."""
    if error.get("kind") == "unknown_job":
        return JobNotFound(job_id)
    return JobWorkerError(f"the shim refused a request about {job_id}: {error.get('message')}")


def _exec_error(number: int, launch: Launch, exists: Callable[[str], bool]) -> JobWorkerError:
    name = launch.argv[0]
    if number == errno.E2BIG:
        return InvalidArgument(
            "command.args", "the arguments and the environment together are too long for execve"
        )
    if number == errno.ENAMETOOLONG:
        return InvalidArgument("command.name", "longer than a path can be")
    if number in (errno.ENOENT, errno.ENOTDIR):
        paths = (os.path.join(launch.working_directory, each) for each in launch.executables)  # noqa: PTH118 - text, not a file
        found = next(filter(exists, paths), None)
        if found is not None:
            return CommandNotFound(
                f"cannot execute {found}: the file is there, but not the interpreter that its "
                "first line or its ELF header names"
            )
        if "/" in name:
            return CommandNotFound(f"cannot execute {name}: there is no such file")
        path = launch.env.get("PATH", "")
        return CommandNotFound(
            f"cannot find the command {name} in the job's PATH ({path}); give the whole path, or "
            "another PATH in the job's environment"
        )
    problem = _NOT_EXECUTABLE.get(number, os.strerror(number))
    return CommandNotExecutable(f"cannot execute {name}: {problem}")
