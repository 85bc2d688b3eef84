"""What the shim's errors mean to a user."""

from __future__ import annotations

import errno

import pytest

from jobworker import errors
from jobworker.shim import wire
from jobworker.shim.failures import job_error, launch_error
from jobworker.shim.wire import Launch

LAUNCH = Launch(
    job_id="x",
    executables=["/usr/bin/thing", "/bin/thing"],
    argv=["thing"],
    env={"PATH": "/usr/bin:/bin"},
    working_directory="/work",
    cgroup_path="/cgroup2/jobworker/x",
    uid=7,
)


def of(kind: str, number: int, *existing: str) -> errors.JobWorkerError:
    reply = {"kind": kind, "errno": number, "message": "said the shim"}
    return launch_error(reply, LAUNCH, existing.__contains__)


@pytest.mark.parametrize(
    ("kind", "number", "expected"),
    [
        ("exec", errno.ENOENT, errors.CommandNotFound),
        ("exec", errno.ENOTDIR, errors.CommandNotFound),
        ("exec", errno.EACCES, errors.CommandNotExecutable),
        ("exec", errno.ENOEXEC, errors.CommandNotExecutable),
        ("exec", errno.EISDIR, errors.CommandNotExecutable),
        ("exec", errno.EPERM, errors.CommandNotExecutable),
        ("exec", errno.ELOOP, errors.CommandNotExecutable),
        ("exec", errno.EIO, errors.CommandNotExecutable),
        ("exec", errno.E2BIG, errors.InvalidArgument),
        ("exec", errno.ENAMETOOLONG, errors.InvalidArgument),
        ("exec", errno.EAGAIN, errors.ResourceExhausted),
        ("exec", errno.ENOMEM, errors.ResourceExhausted),
        ("chdir", errno.ENOENT, errors.WorkingDirectoryUnusable),
        ("chdir", errno.EACCES, errors.WorkingDirectoryUnusable),
        ("credentials", errno.EINVAL, errors.FailedPrecondition),
        ("credentials", errno.EAGAIN, errors.ResourceExhausted),
        ("clone", errno.EAGAIN, errors.ResourceExhausted),
        ("clone", errno.ENOMEM, errors.ResourceExhausted),
        ("clone", errno.EMFILE, errors.ResourceExhausted),
        ("clone", errno.EBUSY, errors.CgroupUnavailable),
        ("clone", errno.ENODEV, errors.CgroupUnavailable),
        ("clone", errno.ENOSPC, errors.ResourceExhausted),
        ("setup", errno.EMFILE, errors.ResourceExhausted),
        ("setup", errno.EIO, errors.FailedPrecondition),
        ("bad_request", 0, errors.JobWorkerError),
    ],
)
def test_error_of_a_launch(kind: str, number: int, expected: type[Exception]) -> None:
    assert kind in wire.ERROR_KINDS
    assert type(of(kind, number)) is expected


@pytest.mark.parametrize(
    ("number", "meaning"),
    [
        (errno.EAGAIN, "limit on processes"),
        (errno.EMFILE, "the shim has no file descriptor left"),
        (errno.ENOSPC, "name spaces or cgroups"),
        (errno.ENFILE, "raise fs.file-max"),
    ],
)
def test_what_has_run_out_is_said_of_the_shim(number: int, meaning: str) -> None:
    assert meaning in str(of("clone", number))


def test_missing_command_says_where_it_was_looked_for() -> None:
    assert "/usr/bin:/bin" in str(of("exec", errno.ENOENT))


def test_missing_interpreter_is_not_a_missing_command() -> None:
    text = str(of("exec", errno.ENOENT, "/bin/thing"))
    assert "/bin/thing" in text
    assert "interpreter" in text


def test_relative_candidates_are_looked_for_in_the_working_directory() -> None:
    launch = Launch(**{**LAUNCH.to_json(), "executables": ["thing"]})
    error = {"kind": "exec", "errno": errno.ENOENT}
    assert "interpreter" in str(launch_error(error, launch, ["/work/thing"].__contains__))


def test_too_long_arguments_name_the_field() -> None:
    error = of("exec", errno.E2BIG)
    assert isinstance(error, errors.InvalidArgument)
    assert error.field == "command.args"


def test_unknown_job_is_not_found() -> None:
    assert type(job_error({"kind": "unknown_job"}, "x")) is errors.JobNotFound
    assert type(job_error({"kind": "bad_request"}, "x")) is errors.JobWorkerError
