"""Limits that are given on the command line hold, and what becomes of the job is said there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.guest.measuring import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Server


@pytest.fixture
def cli(server: Server) -> Iterator[Callable[..., tuple[str, str]]]:
    """Run ``jobworker-cli``, which must succeed; return what it wrote to both outputs."""
    started: list[str] = []

    def run(*arguments: str) -> tuple[str, str]:
        done = server.cli(*arguments)
        assert done.returncode == 0, done.stderr
        if arguments[0] == "start":
            started.append(done.stdout.decode().strip())
        return done.stdout.decode(), done.stderr.decode()

    yield run
    for job_id in started:
        run("stop", "--grace", "0", job_id)


def test_job_beyond_its_memory_max_is_said_to_be_out_of_memory(cli):
    job_id, _ = cli("start", "--memory-max", "32M", "dd", "if=/dev/zero", "of=/dev/null", "bs=128M")
    cli("output", "--tail", job_id.strip())

    job = json.loads(cli("--format", "json", "status", job_id.strip())[0])["job"]

    assert job["status"]["reason"] == "REASON_OUT_OF_MEMORY"
    assert 0.9 * 32 * MIB <= int(job["usage"]["memory_peak"]) <= 32 * MIB


def test_start_warns_of_a_limit_that_only_slows_down_and_applies_what_it_was_given(cli, server):
    flags = ("--memory-high", "32M", "--cpu-max", "20%", "--pids-max", "5", "--memory-oom-group")

    job_id, messages = cli("start", *flags, "sleep", "1000")

    cgroup = server.jobs_cgroup / job_id.strip()
    files = ("memory.high", "cpu.max", "pids.max", "memory.oom.group")
    in_force = [(cgroup / file).read_text().strip() for file in files]
    assert "warning: memory_high without memory_max" in messages
    assert in_force == [str(32 * MIB), "20000 100000", "5", "1"]
