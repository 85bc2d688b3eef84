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
    working_directory="/srv",
    cgroup_path="/cgroup2/jobworker/x",
    uid=7,
)


def of(kind: str, number: int, *existing: str) -> errors.JobWorkerError:
    reply = {"kind": kind, "errno": number, "message": "said the shim"}
    return launch_error(reply, LAUNCH, existing.__contains__)


def test_a_command_that_is_a_directory_is_said_to_be_one():
    launch = LAUNCH._replace(executables=["/etc"], argv=["/etc"])
    reply = {"kind": "exec", "errno": errno.EACCES}
    assert "it is a directory" in str(
        launch_error(reply, launch, is_directory={"/etc"}.__contains__)
    )
    assert "executable file" in str(launch_error(reply, launch, is_directory=set().__contains__))


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
    assert "interpreter" in str(launch_error(error, launch, ["/srv/thing"].__contains__))


@pytest.mark.parametrize("kind", ["exec", "chdir", "clone", "setup"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EAGAIN, errno.EIO])
@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("exists", [True, False])
def test_what_is_long_is_abridged(kind: str, number: int, slash: str, exists: bool) -> None:
    name = slash + "n\U0001f600" * 2000
    launch = Launch(
        job_id="x",
        executables=[name],
        argv=[name],
        env={"PATH": "/p" * 20_000},
        working_directory="/w" * 2000,
        cgroup_path="/c" * 2000,
    )
    error = launch_error({"kind": kind, "errno": number}, launch, lambda _: exists)
    assert len(str(error)) < 400


def test_too_long_arguments_name_the_field() -> None:
    error = of("exec", errno.E2BIG)
    assert isinstance(error, errors.InvalidArgument)
    assert error.field == "command.args"


def test_unknown_job_is_not_found() -> None:
    assert type(job_error({"kind": "unknown_job"}, "x")) is errors.JobNotFound
    assert type(job_error({"kind": "bad_request"}, "x")) is errors.JobWorkerError


@pytest.mark.parametrize("kind", ["exec", "chdir", "credentials", "clone", "setup"])
def test_job_whose_launch_failed_meanwhile_is_told_from_one_that_is_unknown(kind: str) -> None:
    assert kind in wire.ERROR_KINDS
    error = job_error({"kind": kind, "errno": errno.ENOENT}, "x")
    assert type(error) is errors.LaunchFailed
    assert "job x was not started" in str(error)
    assert "No such file" in str(error)
