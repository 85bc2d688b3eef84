from dataclasses import replace

import pytest

from jobworker.errors import InvalidArgument
from jobworker.job.spec import NO_CAP, JobSpec, StopPolicy, effective_cap, executables

TRUE = JobSpec(command="true")


def test_a_plain_command_is_accepted():
    TRUE.check()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("command.name", {"command": ""}),
        ("command.name", {"command": "a\0b"}),
        ("command.name", {"command": "x" * 5000}),
        ("command.args[1]", {"args": ("fine", "a\0b")}),
        ("request_id", {"request_id": "x" * 129}),
        ("request_id", {"request_id": "\0"}),
        ("name", {"name": "\udc80"}),
        ("command.args[0]", {"args": ("\udc80",)}),
        ("env", {"env": {"A=B": "x"}}),
        ("env", {"env": {"": "x"}}),
        ("env", {"env": {"1A": "x"}}),
        ("env['A']", {"env": {"A": "\0"}}),
        ("working_directory", {"working_directory": "relative/path"}),
        ("working_directory", {"working_directory": "/a\0b"}),
        ("working_directory", {"working_directory": "/" + "x" * 5000}),
        ("user", {"user": "a\0b"}),
        ("stdin", {"stdin": b"x" * (1024 * 1024 + 1)}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": -1.0}),
        ("timeout", {"timeout": float("nan")}),
        ("timeout", {"timeout": float("inf")}),
        ("timeout", {"timeout": 1e12}),
        ("stop.signal", {"stop": StopPolicy(signal=65)}),
        ("stop.signal", {"stop": StopPolicy(signal=-9)}),
        ("stop.grace", {"stop": StopPolicy(grace=-1)}),
        ("name", {"name": "x" * 129}),
        ("labels", {"labels": {"-bad": "x"}}),
        ("labels", {"labels": {f"k{i}": "" for i in range(65)}}),
        ("labels['k']", {"labels": {"k": "x" * 256}}),
        ("labels", {"labels": {"x" * 64: ""}}),
        ("output_max_bytes", {"output_max_bytes": 65535}),
        ("output_max_bytes", {"output_max_bytes": 1}),
    ],
)
def test_what_can_never_run_is_refused_with_the_field_named(field, change):
    with pytest.raises(InvalidArgument) as caught:
        replace(TRUE, **change).check()
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("asked", "default", "cap"),
    [
        (0, None, None),
        (0, 100_000, 100_000),
        (65536, 100_000, 65536),
        (NO_CAP, 100_000, None),
        (2**63, 100_000, None),
        (2**63 - 1, None, 2**63 - 1),
    ],
)
def test_a_cap_is_what_was_asked_for_or_the_default(asked, default, cap):
    JobSpec(command="x", output_max_bytes=asked).check()
    assert effective_cap(asked, default) == cap


def test_an_error_does_not_repeat_a_megabyte():
    with pytest.raises(InvalidArgument) as caught:
        replace(TRUE, working_directory="x" * 4000).check()
    assert len(str(caught.value)) < 300


def test_a_name_is_looked_up_in_the_path():
    assert executables("ls", "/bin:/usr/bin/:") == ["/bin/ls", "/usr/bin/ls"]


def test_a_path_is_taken_as_it_is():
    assert executables("./ls", "/bin") == ["./ls"]
