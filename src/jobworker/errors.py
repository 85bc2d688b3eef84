"""The root error and the vocabulary of failures that every layer shares.

Domain code raises these; the RPC layer turns them into gRPC statuses by one table. The module
imports nothing, because the shim imports it too.
"""

from __future__ import annotations

_SHOWN = 60


def shown(text: str) -> str:
    """Quote what somebody sent for an error message, without repeating a megabyte of it."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}… ({len(text)} characters)"


class JobWorkerError(Exception):
    """The root of every error that jobworker raises on purpose."""


class InvalidArgument(JobWorkerError):
    """Raised when a request cannot be right, whatever the state of the host.

    `field` is the name of the field in the wire contract, for example ``limits.cpu_weight``.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class JobNotFound(JobWorkerError):
    """Raised when no job has the given id."""

    def __init__(self, job_id: object) -> None:
        super().__init__(f"no job has the id {job_id}")


class RequestConflict(JobWorkerError):
    """Raised when a request_id was used before for a different request."""


class PermissionDenied(JobWorkerError):
    """Raised when a caller is unknown, or lacks the role that a method needs."""


class FailedPrecondition(JobWorkerError):
    """Raised when the request is well formed but the host cannot carry it out as it is now."""


class CommandNotFound(FailedPrecondition):
    """Raised when the command, or the interpreter its first line names, does not exist."""


class CommandNotExecutable(FailedPrecondition):
    """Raised when the command exists but the job's user may not, or cannot, execute it."""


class WorkingDirectoryUnusable(FailedPrecondition):
    """Raised when the working directory is missing, is no directory, or may not be entered."""


class LaunchFailed(FailedPrecondition):
    """Raised when a job that somebody asks about turns out not to have been started."""


class UserNotFound(FailedPrecondition):
    """Raised when the host has no such user."""


class CgroupUnavailable(FailedPrecondition):
    """Raised when there is no cgroup v2 hierarchy that jobs could live in."""


class ControllerUnavailable(FailedPrecondition):
    """Raised when a limit needs a cgroup controller, or a file of one, that is not available."""


class LimitNotApplied(FailedPrecondition):
    """Raised when the kernel refused a limit, or what was read back is not what was written."""


class EventsExpired(JobWorkerError):
    """Raised when events were asked for that are not kept any more, or were lost with the power."""


class ResourceExhausted(JobWorkerError):
    """Raised when the host has run out of something: processes, descriptors, disk space."""


class Unavailable(JobWorkerError):
    """Raised when the service cannot answer now, but may later."""


class ShimUnavailable(Unavailable):
    """Raised when the shim cannot be started or reached."""


class ShuttingDown(Unavailable):
    """Raised when a call arrives after the server began to shut down."""


class AlreadyLocked(JobWorkerError):
    """Raised when another server holds the lock of the run directory."""


class IllegalTransition(JobWorkerError):
    """Raised when an event does not fit a job's state; the state is unchanged."""


class RegistryDamaged(JobWorkerError):
    """Raised when the registry's file cannot be read, or what it holds makes no sense."""


class ConfigError(JobWorkerError):
    """Raised when a setting, a certificate or a directory that the program needs is unusable."""
