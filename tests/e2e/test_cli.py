"""jobworker-cli as people type it, against the real server."""

import json
import re
import signal
import subprocess
import uuid

import pytest

from tests.support.waiting import PATIENCE

SEED_FLAGS = {
    "--memory-min": ("1M", "memory.min", "1048576"),
    "--memory-low": ("1M", "memory.low", "1048576"),
    "--memory-high": ("64M", "memory.high", "67108864"),
    "--memory-max": ("64M", "memory.max", "67108864"),
    "--cpu-weight": ("50", "cpu.weight", "50"),
    "--cpu-max": ("1.5", "cpu.max", "150000 100000"),
    "--cpu-burst-max": ("10ms", "cpu.max.burst", "10000"),
    "--io-weight": ("50", "io.weight", "default 50"),
    "--io-max-rbps": ("10M", "io.max", "rbps=10485760"),
    "--io-max-wbps": ("10M", "io.max", "wbps=10485760"),
    "--io-max-riops": ("100", "io.max", "riops=100"),
    "--io-max-wiops": ("100", "io.max", "wiops=100"),
}
"""A flag → a value, and the file and the text that it becomes."""


def start(running, *arguments, **how):
    result = running.cli("start", *arguments, **how)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().strip()


def test_start_prints_the_job_id_alone(server):
    result = server().cli("start", "true")
    assert (result.returncode, result.stderr) == (0, b"")
    assert str(uuid.UUID(result.stdout.decode().strip())) + "\n" == result.stdout.decode()


def test_output_arrives_byte_for_byte(server):
    running = server()
    job_id = start(running, "--", "printf", r"\000\377no newline")
    assert running.cli("output", "--tail", job_id).stdout == b"\0\xffno newline"


def test_start_status_output_stop_as_in_the_seed(server):
    running = server()
    job_id = start(running, "sh", "-c", "echo out; exec sleep 1000")
    assert b"running" in running.cli("status", job_id).stdout
    follow = subprocess.Popen(running.cli_command("output", "--tail", job_id), stdout=-1, stderr=-1)
    assert follow.stdout.readline() == b"out\n"
    assert running.cli("stop", job_id).returncode == 0
    assert follow.communicate(timeout=PATIENCE) == (b"", b"")
    assert follow.returncode == 0
    assert b"stopped" in running.cli("status", job_id).stdout
    assert running.cli("output", job_id).stdout == b"out\n"


def test_what_comes_after_the_command_belongs_to_the_command(server):
    running = server()
    for arguments in (
        ["printf", "<%s>", "--help", "--memory-max", "-x"],
        ["--", "printf", "<%s>", "--help", "--memory-max", "-x"],
    ):
        job_id = start(running, *arguments)
        content = running.cli("output", "--tail", job_id).stdout
        assert content == b"<--help><--memory-max><-x>"


@pytest.mark.parametrize("flag", SEED_FLAGS)
def test_every_limit_of_the_seed_is_applied_or_refused_by_name(server, flag):
    value, file, content = SEED_FLAGS[flag]
    controller = file.partition(".")[0]
    running = server()
    quota = ["--cpu-max", "50ms/100ms"] if flag == "--cpu-burst-max" else []
    result = running.cli("start", *quota, flag, value, "sleep", "1000")
    if controller in (running.jobs_cgroup / "cgroup.subtree_control").read_text().split():
        assert result.returncode == 0, result.stderr
        job_id = result.stdout.decode().strip()
        assert content in (running.jobs_cgroup / job_id / file).read_text()
        assert running.cli("stop", "--grace", "0", job_id).returncode == 0
    else:
        assert result.returncode == 1
        assert f"the {controller} controller" in result.stderr.decode()


def test_help_names_the_commands_and_the_global_flags_of_the_seed(server):
    running = server()
    for arguments in (["help"], ["--help"]):
        text = running.cli(*arguments).stdout.decode()
        for word in ("start", "stop", "status", "output", "help"):
            assert re.search(rf"^  {word} ", text, re.MULTILINE), word
        for flag in ("--url", "--cert", "--key", "--ca"):
            assert flag in text
    text = running.cli("help", "start").stdout.decode()
    for flag in SEED_FLAGS:
        assert flag in text
    assert "--tail" in running.cli("help", "output").stdout.decode()


def test_a_query_user_is_refused_a_start_and_allowed_an_output(server):
    running = server()
    refused = running.cli("start", "true", user="user_bravo")
    assert refused.returncode == 1
    assert b"user_bravo" in refused.stderr
    assert refused.stdout == b""
    job_id = start(running, "echo", "hello")
    assert running.cli("output", "--tail", job_id, user="user_bravo").stdout == b"hello\n"


def test_status_as_json_has_the_names_of_the_contract(server):
    running = server()
    job_id = start(running, "--name", "n", "--label", "k=v", "sh", "-c", "exit 3")
    running.cli("output", "--tail", job_id)
    found = json.loads(running.cli("status", "--format", "json", job_id).stdout)
    assert found["status"]["status"] == "STATUS_EXITED"
    assert found["status"]["exit_code"] == 3
    assert found["job"]["id"] == job_id
    assert (found["job"]["name"], found["job"]["labels"]) == ("n", {"k": "v"})


def test_standard_input_reaches_the_command(server):
    running = server()
    content = bytes(range(256)) * 100
    job_id = start(running, "--stdin", "cat", stdin=content)
    assert running.cli("output", "--tail", job_id).stdout == content


def test_ctrl_c_detaches_and_says_how_to_stop_the_job(server):
    running = server()
    job_id = start(running, "sh", "-c", "echo ready; exec sleep 1000")
    follow = subprocess.Popen(running.cli_command("output", "--tail", job_id), stdout=-1, stderr=-1)
    assert follow.stdout.readline() == b"ready\n"
    follow.send_signal(signal.SIGINT)
    _, messages = follow.communicate(timeout=PATIENCE)
    assert follow.returncode == 130
    assert f"jobworker-cli stop {job_id}".encode() in messages
    assert b"running" in running.cli("status", job_id).stdout
    assert running.cli("stop", "--grace", "0", job_id).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["start", "no-such-command"], 1, "no-such-command"),
        (["start"], 2, "COMMAND"),
        (["start", "--memory-max", "-1", "true"], 2, "--memory-max"),
        (["start", "--cpu-weight", "0", "true"], 2, "--cpu-weight"),
        (["status", "nonsense"], 2, "nonsense"),
        (["status", "00000000-0000-4000-8000-000000000000"], 1, "no job"),
        (["stop", "00000000-0000-4000-8000-000000000000"], 1, "no job"),
        (["output", "00000000-0000-4000-8000-000000000000"], 1, "no job"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_status(server, arguments, status, said):
    result = server().cli(*arguments)
    assert (result.returncode, result.stdout) == (status, b"")
    assert said in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()
