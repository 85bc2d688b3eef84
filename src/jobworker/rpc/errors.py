"""Which gRPC status a domain error becomes: one table, used at the border and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from jobworker import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

ERROR_NAME: Final = "jobworker-error"
"""The trailing metadata in which an answer names the class of the domain error, for programs."""

STATUS_CODES: Final[Mapping[type[errors.JobWorkerError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.JobNotFound: grpc.StatusCode.NOT_FOUND,
    errors.RequestConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.EventsExpired: grpc.StatusCode.OUT_OF_RANGE,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.AlreadyLocked: grpc.StatusCode.INTERNAL,
    errors.IllegalTransition: grpc.StatusCode.INTERNAL,
    errors.RegistryDamaged: grpc.StatusCode.DATA_LOSS,
    errors.ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobWorkerError: grpc.StatusCode.INTERNAL,
}
"""A class not listed has the status of the nearest class it derives from."""


def status_code(error: errors.JobWorkerError) -> grpc.StatusCode:
    """Return the status that a client gets for `error`."""
    return next(STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)


def error_name(error: grpc.RpcError) -> str:
    """Return the name of the class in `jobworker.errors` that a failed call stands for, or ""."""
    trailing: Any = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else None
    return next((str(value) for key, value in trailing or () if key == ERROR_NAME), "")
