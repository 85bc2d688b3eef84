import inspect

import grpc
import pytest

from jobworker import errors
from jobworker.rpc.errors import STATUS_CODES, status_code

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.JobWorkerError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_of_its_own_or_of_what_it_derives_from(kind):
    listed = [k for k in kind.__mro__ if k in STATUS_CODES]
    assert listed
    assert listed != [errors.JobWorkerError] or kind is errors.JobWorkerError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgument("job_id", "is empty"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.JobNotFound("x"), grpc.StatusCode.NOT_FOUND),
        (errors.PermissionDenied(), grpc.StatusCode.PERMISSION_DENIED),
        (errors.CommandNotFound(), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ControllerUnavailable(), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RequestConflict(), grpc.StatusCode.ALREADY_EXISTS),
        (errors.ResourceExhausted(), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.ShuttingDown(), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_an_error_becomes_the_status_of_the_contract(error, code):
    assert status_code(error) is code


def test_no_row_is_for_a_class_that_does_not_exist():
    assert set(STATUS_CODES) <= set(KINDS)
