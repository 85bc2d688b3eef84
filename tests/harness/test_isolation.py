"""A guest sees the host's files, changes none of them, and brings out what it is told to."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

STATUS = 7


@pytest.fixture(scope="module")
def attempt(
    directory: Path, boot: Callable[..., subprocess.CompletedProcess[str]]
) -> subprocess.CompletedProcess[str]:
    """A guest whose root writes wherever it can, and says how that went."""
    (directory / "precious").write_text("precious\n", encoding="utf-8")
    return boot(
        f"""
        directory={shlex.quote(str(directory))}
        cat "$directory/precious"
        echo ruined > "$directory/precious"
        cat "$directory/precious"
        echo more > "$directory/more"
        # The export of the host's files itself, and not only the layer above it.
        export="/run/guest/host$directory"
        cat "$export/precious"
        mount -o remount,rw /run/guest/host
        grep ' /run/guest/host ' /proc/self/mounts
        echo ruined > "$export/precious"
        rm "$export/precious"
        mkdir "$export/more"
        echo brought out > "$GUEST_OUTPUT/result"
        exit {STATUS}
        """,
        f"--output={directory}/output",
    )


def test_guest_sees_the_hosts_files_and_keeps_its_own_changes(attempt):
    assert "\nprecious\nruined\nprecious\n" in attempt.stdout


def test_nothing_that_the_guest_writes_reaches_the_host(attempt, directory: Path):
    assert (directory / "precious").read_text(encoding="utf-8") == "precious\n"
    assert sorted(path.name for path in directory.iterdir()) == ["output", "precious"]


def test_the_host_refuses_writes_whatever_the_guest_has_mounted(attempt):
    assert "hostroot /run/guest/host 9p rw," in attempt.stdout
    refusals = [line for line in attempt.stdout.splitlines() if "Read-only file system" in line]

    assert len(refusals) == 3


def test_exit_status_is_that_of_the_command(attempt):
    assert attempt.returncode == STATUS


def test_files_in_the_output_directory_are_brought_out(attempt, directory: Path):
    assert (directory / "output" / "result").read_text(encoding="utf-8") == "brought out\n"
