from __future__ import annotations

import io

import pytest
from click.testing import CliRunner

from jobworker.cli import start
from jobworker.cli.main import cli
from jobworker.cli.session import Failure, Session
from jobworker.job.spec import MIN_OUTPUT_MAX
from jobworker.rpc.v1 import jobworker_pb2 as pb


def build(*arguments: str) -> pb.StartRequest:
    """Parse a command line, and return the request that would be sent."""
    with start.command.make_context("start", list(arguments), obj=Session()) as context:
        flags = dict(context.params)
        return start.build_request(flags.pop("command_line"), flags)


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["start", *arguments])
    assert result.exit_code == 2, result.output
    return result.output


def test_the_smallest_cap_is_the_servers():
    assert start.OUTPUT_MAX_MIN == MIN_OUTPUT_MAX


def test_a_command_alone_sends_nothing_but_the_command_and_an_id():
    request = build("true")
    assert request.command == pb.Command(name="true")
    request.ClearField("request_id")
    assert request == pb.StartRequest(command=request.command, limits=pb.Limits())


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["ls", "-l", "--memory-max", "1G"], ["ls", "-l", "--memory-max", "1G"]),
        (["--memory-max", "1G", "ls", "-l"], ["ls", "-l"]),
        (["--", "ls", "--", "-l"], ["ls", "--", "-l"]),
        (["--", "--odd-name", "-x"], ["--odd-name", "-x"]),
        (["ls", "--help", "-h"], ["ls", "--help", "-h"]),
        (["echo", "", "a b", "ü"], ["echo", "", "a b", "ü"]),
    ],
)
def test_everything_after_the_commands_name_belongs_to_the_command(arguments, command):
    request = build(*arguments)
    assert [request.command.name, *request.command.args] == command


def test_each_start_has_an_id_of_its_own():
    assert build("true").request_id != build("true").request_id
    assert build("--request-id", "mine", "true").request_id == "mine"


def test_what_was_asked_for_is_sent():
    request = build(
        *("--env", "A=1", "--env", "B=", "--env", "C=x=y"),
        *("--working-directory", "/srv", "--user", "nobody", "--name", "nightly"),
        *("--label", "a=b", "--label", "c=d", "--stop-signal", "INT", "true"),
    )
    assert dict(request.env) == {"A": "1", "B": "", "C": "x=y"}
    assert request.working_directory == "/srv"
    assert request.user == "nobody"
    assert request.name == "nightly"
    assert dict(request.labels) == {"a": "b", "c": "d"}
    assert request.stop.signal == 2
    assert not request.stop.HasField("grace")


def test_durations_are_sent_to_the_nanosecond():
    request = build("--timeout", "1h30m0.5s", "--stop-grace", "0", "true")
    assert request.timeout.ToMilliseconds() == 5_400_500
    assert request.stop.HasField("grace")
    assert request.stop.grace.ToMilliseconds() == 0


def test_a_variable_without_a_value_is_taken_from_here(monkeypatch):
    monkeypatch.setenv("HERE", "x")
    assert dict(build("--env", "HERE", "true").env) == {"HERE": "x"}


def test_a_variable_that_is_not_here_is_an_error():
    assert "'NOT_HERE' is not KEY=VALUE" in refusal("--env", "NOT_HERE", "true")


def test_standard_input_up_to_1_mib_is_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(start.STDIN_MAX))))
    assert len(start.read_stdin()) == 1024 * 1024
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(start.STDIN_MAX + 1))))
    with pytest.raises(Failure, match="longer than 1 MiB"):
        start.read_stdin()


def test_a_time_limit_of_zero_is_refused():
    assert "no time" in refusal("--timeout", "0s", "true")


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (["--memory-max", "12Q", "true"], ["--memory-max", "'12Q'", "512M"]),
        (["--cpu-max", "abc", "true"], ["--cpu-max", "'abc'", "150%"]),
        (["--io-max-rbps", "10M", "--io-max-rbps", "x", "true"], ["--io-max-rbps", "'x'"]),
        (["--cpu-weight", "0", "true"], ["--cpu-weight", "'0'", "1 to 10000"]),
        (["--label", "x", "true"], ["--label", "'x'", "KEY=VALUE"]),
        (["--stop-signal", "NOPE", "true"], ["--stop-signal", "'NOPE'", "SIGTERM"]),
        (["--timeout", "soon", "true"], ["--timeout", "'soon'", "1h30m"]),
        (["--memory-mux", "1G", "true"], ["--memory-mux", "--memory-max"]),
        ([], ["COMMAND"]),
        (["--name", "caf\udce9", "true"], ["--name", "UTF-8"]),
        (["--env", "A=caf\udce9", "true"], ["--env", "UTF-8"]),
        (["cat", "caf\udce9"], [r"'caf\udce9'", "UTF-8"]),
    ],
)
def test_a_wrong_flag_is_named_with_its_value_and_what_is_accepted(arguments, hints):
    output = refusal(*arguments)
    for hint in hints:
        assert hint in output
