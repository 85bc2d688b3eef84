import errno
import itertools
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import jobworker
from jobworker import program
from jobworker.daemon import main
from jobworker.job import service


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["check", "--help"]])
def test_the_defaults_shown_are_those_of_the_library(arguments):
    shown = CliRunner().invoke(main.cli, arguments).output
    shown = " ".join(shown.split())
    for name in ("LOG_DIR", "STATE_DIR", "RUN_DIR"):
        assert f"default: {getattr(service, f'DEFAULT_{name}')}]" in shown
    assert f"else {service.DEFAULT_CGROUP_ROOT}]" in shown


def test_the_program_calls_itself_jobworker_however_it_was_started(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/x/__main__.py", "--help"])
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().out.startswith("Usage: jobworker ")


COMMANDS = ["", "serve", "check", "certs", "certs init", "certs user", "help"]


@pytest.mark.parametrize(("command", "columns"), [*itertools.product(COMMANDS, (60, 80))])
def test_help_fits_the_terminal_and_breaks_no_path(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert program.run(main.cli, "jobworker", ["help", *command.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if line.strip() == "]" or line.endswith("/")]
    assert not [line for line in lines if line.startswith("  ") and line.endswith("...")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_the_same_either_way(command, capsys):
    program.run(main.cli, "jobworker", ["help", *command.split()])
    asked = capsys.readouterr().out
    program.run(main.cli, "jobworker", [*command.split(), "--help"])
    assert asked == capsys.readouterr().out


def test_the_version(capsys):
    assert program.run(main.cli, "jobworker", ["--version"]) == 0
    assert capsys.readouterr().out == f"jobworker {jobworker.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sevre"], "there is no command 'sevre'; did you mean serve?"),
        (["help", "sevre"], "there is no command 'sevre'; did you mean serve?"),
        (["help", "serve", "x"], "jobworker serve has no command 'x'"),
        (["check", "--frobnicate"], "No such option"),
        (["serve", "--config", "no.toml"], f"cannot read the configuration {Path.cwd()}/no.toml"),
    ],
)
def test_wrong_usage_is_a_sentence_and_status_2(arguments, said, capsys):
    assert program.run(main.cli, "jobworker", arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"jobworker: {said}")
    assert "\nTry 'jobworker" in shown.err


def test_paths_in_errors_are_absolute(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = [word for name in ("log", "state", "run") for word in (f"--{name}-dir", name)]
    Path("jobworker.toml").touch()
    program.run(main.cli, "jobworker", ["check", "--config", "jobworker.toml", "--key=k", *places])
    assert f"{tmp_path}/k" in capsys.readouterr().out


def test_an_answer_that_cannot_be_written_is_a_sentence(monkeypatch, capsys):
    class Full:
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.stdout", Full())
    assert program.run(main.cli, "jobworker", ["help"]) == 1
    assert capsys.readouterr().err == (
        "jobworker: cannot write the answer: No space left on device\n"
    )
