"""The program, as far as no server is needed: as a process where that makes a difference."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jobworker
from jobworker.cli.main import COMMANDS, PROGRAM, CommandTable, cli, run
from tests.support.waiting import PATIENCE

GRPC_SLIPS_IN = "any(name.partition('.')[0] in ('grpc', 'google') for name in sys.modules)"
JOB = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Ran:
    """What a command line came to."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(capsys, monkeypatch):
    """Run a command line in this process, with the settings of none but the test."""
    for name in [name for name in os.environ if "JOBWORKER" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.setenv("COLUMNS", "80")

    def run_here(*arguments: str) -> Ran:
        capsys.readouterr()
        return Ran(run(arguments), *capsys.readouterr())

    return run_here


def cli_run(*arguments: str | bytes, **settings) -> subprocess.CompletedProcess[bytes]:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(jobworker.__file__).parent.parent),
        "XDG_CONFIG_HOME": "/nonexistent",
        **settings.pop("environ", {}),
    }
    command = [sys.executable, "-m", "jobworker.cli", *arguments]
    return subprocess.run(
        command, env=environ, check=False, **{"capture_output": True, "timeout": 30} | settings
    )


def test_the_version(run_here):
    result = run_here("--version")
    assert result.returncode == 0
    assert result.stdout == f"jobworker-cli {jobworker.__version__}\n"


def test_the_program_shows_its_help(run_here):
    result = cli_run("help")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == run_here("help").stdout


@pytest.mark.parametrize("flag", ["help", "--help", "-h"])
def test_help_lists_the_commands_and_the_global_flags(run_here, flag):
    result = run_here(flag)
    assert result.returncode == 0
    help_text = result.stdout
    assert help_text.startswith("Usage: jobworker-cli [GLOBAL FLAGS] COMMAND [COMMAND FLAGS]\n")
    for word in (*COMMANDS, "--url", "--cert", "--key", "--ca", "JOBWORKER_URL"):
        assert word in help_text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_the_same_either_way_and_fits_the_terminal(run_here, name):
    asked, flag = run_here("help", name), run_here(name, "--help")
    assert asked.returncode == flag.returncode == 0
    assert asked.stdout == flag.stdout
    assert max(len(line) for line in asked.stdout.splitlines()) <= 80
    assert "\x1b" not in asked.stdout


def test_the_list_of_commands_says_what_the_commands_say_of_themselves():
    assert isinstance(cli, CommandTable)
    with cli.make_context("jobworker-cli", ["help"]) as context:
        for name, short_help in COMMANDS.items():
            command = cli.get_command(context, name)
            assert command is not None
            assert command.get_short_help_str(limit=80) == short_help


def test_no_command_is_wrong_usage_and_shows_the_help(run_here):
    result = run_here()
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nope"], "there is no command 'nope'; there are: help, run"),
        (["statu", "x"], "there is no command 'statu'; did you mean status?"),
        (["help", "statu"], "there is no command 'statu'; did you mean status?"),
        (["logs", "x"], "did you mean output?"),
        (["kill", "x"], "did you mean signal, or stop?"),
        (["ps"], "did you mean list?"),
        (["completion"], "Missing argument 'bash|zsh|fish'.\nTry"),
        (["help", "nope"], "there is no command 'nope'"),
        (["--nope", "status", "x"], "--nope"),
        (["status"], "JOB_ID"),
        (["status", JOB, "b"], "unexpected extra argument"),
        (["status", "--format", "xml", "x"], "'xml'"),
        (["output", "--offset", "-1", "x"], "not a number of bytes"),
        (["stop", "--grace", "long", "x"], "1h30m"),
        (["stop", "--signal", "NOPE", "x"], "RTMIN+1"),
        (["signal", "NOPE", "x"], "SIGTERM"),
        (["signal", "TERM"], "JOB_ID"),
        (["update", JOB], "at least one limit"),
        (["update", "--memory-max", "much", "x"], "512M"),
        (["update", "--memory-max", "1G"], "JOB_ID"),
        (["stats", "--interval", "often", "x"], "500ms"),
        (["output", ""], "Invalid value for 'JOB_ID': it is empty"),
        (["status", JOB], "--cert FILE, set JOBWORKER_CERT"),
        (["--context", "lab", "status", JOB], "cannot use the context 'lab'"),
        (
            ["--cert=a", "--key=b", "--ca=c", "--url=http://x", "status", JOB],
            "--url (or JOBWORKER_URL): 'http://x'",
        ),
        (["status", "x"], "'x' is not a job id (a UUID, as start prints it)"),
        (["remove", JOB, "x"], "'x' is not a job id"),
        (["watch", "x"], "'x' is not a job id"),
        (["start", "--working-directory", "tmp", "true"], "'tmp' is not an absolute path"),
        (["start", "--output-max", "1K", "true"], "64K or more"),
        (["status", "caf\udce9"], r"'caf\udce9' is not UTF-8"),
        (["start", "cat", "caf\udce9"], r"'caf\udce9' is not UTF-8"),
    ],
)
def test_wrong_usage_is_a_sentence_and_status_2(run_here, arguments, hint):
    result = run_here(*arguments)
    message = result.stderr
    assert result.returncode == 2
    assert message.startswith("jobworker-cli: ")
    assert hint in message
    assert "\nTry 'jobworker-cli" in message
    assert "Traceback" not in message
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run"], "COMMAND"),
        (["run", "--nope", "true"], "--nope"),
        (["run", "--timeout", "0", "true"], "--timeout"),
        (["run", "true"], "--cert FILE"),
        (["wait"], "JOB_ID"),
        (["wait", ""], "it is empty"),
        (["wait", "--timeout", "long", "x"], "1h30m"),
        (["wait", JOB], "--cert FILE"),
        (["--cert=/no", "--key=/no", "--ca=/no", "wait", JOB], "/no"),
    ],
)
def test_what_ends_as_a_job_does_fails_with_125(run_here, arguments, hint):
    result = run_here(*arguments)
    assert (result.returncode, result.stdout) == (125, "")
    assert hint in result.stderr


@pytest.mark.parametrize("arguments", [["status", b"caf\xe9"], ["start", "cat", b"caf\xe9"]])
def test_bytes_that_are_no_utf8_are_wrong_usage(run_here, arguments):
    result = cli_run(*arguments)
    here = run_here(*(os.fsdecode(argument) for argument in arguments))
    assert (result.returncode, result.stdout) == (2, b"")
    assert r"'caf\udce9' is not UTF-8" in result.stderr.decode()
    assert result.stderr.decode() == here.stderr


def test_a_wrong_url_names_the_file_that_it_was_written_in(run_here, tmp_path, monkeypatch):
    path = tmp_path / "jobworker" / "config.toml"
    path.parent.mkdir()
    names = 'cert = "a"\nkey = "b"\nca = "c"\nurl = "http://x"'
    path.write_text(f'current = "lab"\n[contexts.lab]\n{names}')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    result = run_here("status", JOB)
    assert result.returncode == 2
    assert result.stderr.startswith(f"jobworker-cli: url in {path}: 'http://x' is none of")


def test_a_file_that_is_missing_is_named(run_here):
    result = run_here("--cert=/no/a.crt", "--key=/no/a.key", "--ca=/no/ca.crt", "status", JOB)
    assert result.returncode == 1
    assert result.stderr == (
        "jobworker-cli: cannot read the private key /no/a.key: there is no such file; check --key "
        "(or JOBWORKER_KEY, or the context)\n"
    )


def test_a_traceback_is_shown_to_those_who_ask_for_it(run_here, monkeypatch):
    monkeypatch.setenv("JOBWORKER_DEBUG", "1")
    result = run_here("status", "x")
    assert result.returncode == 2
    assert "Traceback (most recent call last)" in result.stderr
    monkeypatch.setenv("JOBWORKER_DEBUG", "0")
    assert "Traceback" not in run_here("status", "x").stderr


def test_a_reader_of_the_help_that_is_gone_ends_it_quietly_as_by_sigpipe():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = cli_run("help", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert result.returncode == 141
    assert result.stderr == b""


def test_a_full_disk_is_an_error_even_for_the_help():
    with Path("/dev/full").open("wb") as full:
        result = cli_run("help", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert b"No space left on device" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(("arguments", "status"), [("help", 1), ("run true", 125), ("wait x", 125)])
def test_a_closed_standard_output_is_an_error_before_anything_is_done(arguments, status):
    command = f"exec {shlex.quote(sys.executable)} -m jobworker.cli {arguments} >&-"
    environ = {"PYTHONPATH": str(Path(jobworker.__file__).parent.parent)}
    result = subprocess.run(
        ["sh", "-c", command], env=environ, capture_output=True, check=False, timeout=PATIENCE
    )
    assert result.returncode == status
    assert result.stderr == (
        b"jobworker-cli: standard output is closed; > /dev/null throws it away\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_every_shell(run_here, shell, capsys, monkeypatch):
    result = run_here("completion", shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert "_JOBWORKER_CLI_COMPLETE" in result.stdout
    monkeypatch.setenv("_JOBWORKER_CLI_COMPLETE", f"{shell}_source")
    with pytest.raises(SystemExit):
        cli.main(prog_name=PROGRAM)
    assert capsys.readouterr().out.strip() == result.stdout.strip()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("sta", ["start", "status", "stats"]),
        ("help wa", ["wait", "watch"]),
        ("signal --all TE", ["TERM"]),
        ("signal sigte", ["SIGTERM"]),
        ("stop --signal HU", ["HUP"]),
        ("run --stop-signal HU", ["HUP"]),
    ],
)
def test_commands_and_signals_are_completed(words, completed):
    result = cli_run(
        environ={
            "_JOBWORKER_CLI_COMPLETE": "bash_complete",
            "COMP_WORDS": f"jobworker-cli {words}",
            "COMP_CWORD": str(len(words.split())),
        }
    )
    assert result.stdout.decode().split() == [f"plain,{word}" for word in completed]


def test_help_loads_nothing_of_grpc():
    program = f"import sys, jobworker.cli.main, jobworker.cli.help; sys.exit({GRPC_SLIPS_IN})"
    environ = {"PYTHONPATH": str(Path(jobworker.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", program], env=environ, check=False).returncode == 0


def test_a_call_loads_no_cryptography_and_no_msgspec():
    program = (
        "import sys, jobworker.cli.status, jobworker.cli.start, jobworker.cli.output; "
        "sys.exit(any(name in sys.modules for name in ('cryptography', 'msgspec')))"
    )
    environ = {"PYTHONPATH": str(Path(jobworker.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", program], env=environ, check=False).returncode == 0
