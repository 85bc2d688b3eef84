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
    LaunchFailed,
    WorkingDirectoryUnusable,
    shown,
)
from jobworker.exhaustion import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.shim.wire import Launch

_STAGES: Final = {
    "exec": "its command cannot be executed",
    "chdir": "its working directory cannot be entered",
    "credentials": "its user's ids cannot be taken on",
    "clone": "no process can be made in its cgroup",
    "setup": "its start cannot be prepared",
}
"""Where a launch fails."""

_LONG: Final = 256
"""Characters; what is longer is abridged in messages, because gRPC drops a status above 8 KiB."""

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
    error: dict[str, Any],
    launch: Launch,
    exists: Callable[[str], bool] = os.path.exists,
    is_directory: Callable[[str], bool] = os.path.isdir,
) -> JobWorkerError:
    """Return the error to raise for a refused or failed launch.

    `exists` and `is_directory` look at the host.
    """
    kind, number = error.get("kind"), int(error.get("errno") or 0)
    if kind == "bad_request":
        return JobWorkerError(f"the shim did not accept the launch: {error.get('message')}")
    if (
        lack := exhausted(f"start {_brief(launch.argv[0])}", number, meanings=_MEANINGS)
    ) is not None:
        return lack
    if kind == "exec":
        return _exec_error(number, launch, exists, is_directory)
    problem = os.strerror(number)
    if kind == "chdir":
        return WorkingDirectoryUnusable(
            f"cannot enter the working directory {_brief(launch.working_directory)}: {problem}"
        )
    if kind == "credentials":
        return FailedPrecondition(f"cannot run the command as user {launch.uid}: {problem}")
    if kind == "clone":
        return CgroupUnavailable(
            f"cannot start a process in {_brief(launch.cgroup_path)}: {problem}"
        )
    return FailedPrecondition(f"cannot prepare the start of {_brief(launch.argv[0])}: {problem}")


def job_error(error: dict[str, Any], job_id: str) -> JobWorkerError:
    """Return the error to raise for a request about a job that was launched before.

    What a launch can fail with is the answer to somebody who asked while it was under way.
    """
    kind = error.get("kind")
    if kind == "unknown_job":
        return JobNotFound(job_id)
    if kind in _STAGES:
        problem = os.strerror(int(error.get("errno") or 0))
        return LaunchFailed(f"job {job_id} was not started: {_STAGES[kind]}: {problem}")
    return JobWorkerError(f"the shim refused a request about {job_id}: {error.get('message')}")


def _exec_error(
    number: int,
    launch: Launch,
    exists: Callable[[str], bool],
    is_directory: Callable[[str], bool],
) -> JobWorkerError:
    name = launch.argv[0]
    if number == errno.E2BIG:
        return InvalidArgument(
            "command.args", "the arguments and the environment together are too long for execve"
        )
    if number == errno.ENAMETOOLONG:
        return InvalidArgument("command.name", "longer than a path can be")
    paths = [os.path.join(launch.working_directory, each) for each in launch.executables]  # noqa: PTH118 - text, not a file
    if number in (errno.ENOENT, errno.ENOTDIR):
        found = next(filter(exists, paths), None)
        if found is not None:
            return CommandNotFound(
                f"cannot execute {_brief(found)}: the file is there, but not the interpreter that "
                "its first line or its ELF header names"
            )
        if "/" in name:
            return CommandNotFound(f"cannot execute {_brief(name)}: there is no such file")
        path = _brief(launch.env.get("PATH", ""))
        return CommandNotFound(
            f"cannot find the command {_brief(name)} in the job's PATH ({path}); give the whole "
            "path, or another PATH in the job's environment"
        )
    if number == errno.EACCES and "/" in name and any(map(is_directory, paths)):
        return CommandNotExecutable(f"cannot execute {name}: it is a directory")
    problem = _NOT_EXECUTABLE.get(number, os.strerror(number))
    return CommandNotExecutable(f"cannot execute {_brief(name)}: {problem}")


def _brief(text: str) -> str:
    return text if len(text) <= _LONG else shown(text)
