"""A guest that comes to a bad end is a failure that explains itself, and leaves no QEMU behind."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).parents[2]
FAILED = 125

Boot = "Callable[..., subprocess.CompletedProcess[str]]"


def test_panic_is_a_failure_that_shows_the_console(boot: Boot):
    # stty returns when the console has sent what it was given, which a panic does not wait for.
    ended = boot("echo the last words; stty echo <&1; echo c > /proc/sysrq-trigger")

    assert ended.returncode == FAILED
    assert "the guest's kernel panicked: Kernel panic - not syncing: sysrq" in ended.stderr
    assert "  | the last words" in ended.stderr


def test_guest_that_hangs_is_ended_by_the_time_limit(boot: Boot):
    ended = boot("echo the last words; sleep 1000", "--time-limit=8")

    assert ended.returncode == FAILED
    assert "the guest had not ended after 8 s and was stopped" in ended.stderr


def test_guest_that_powers_off_without_a_report_is_a_failure(boot: Boot):
    ended = boot("/run/guest/bin/busybox poweroff -f")

    assert ended.returncode == FAILED
    assert "the guest powered off without a whole report" in ended.stderr


def test_guest_ends_with_a_harness_that_is_killed(
    harness: Callable[..., list[str]], tmp_path: Path
):
    command = harness("echo up and running; sleep 1000")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # It leaves its files behind.
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        while b"up and running" not in (line := process.stdout.readline()):
            assert line, "the guest came up"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (qemu,) = map(int, children)
        pidfd = os.pidfd_open(qemu)
        process.kill()

    ended, _, _ = select.select([pidfd], [], [], PATIENCE)
    os.close(pidfd)
    assert ended
