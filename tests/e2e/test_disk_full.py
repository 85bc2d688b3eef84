"""A log directory on a file system that is really full. Needs root, to mount one."""

from __future__ import annotations

import subprocess

import pytest

from jobworker import output
from jobworker.errors import ResourceExhausted

JOB = "5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"


@pytest.fixture
def mount(tmp_path):
    """Mount a tmpfs that has room for a number of files and directories, its own included."""

    def mount(files: int) -> None:
        options = f"nr_inodes={files},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path], check=True)

    yield mount
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("free", [0, 1], ids=["for the directory", "for the output"])
def test_a_log_that_has_no_room_leaves_nothing_behind(mount, tmp_path, free):
    mount(1 + free)
    with pytest.raises(ResourceExhausted, match=f"{JOB}.*disk is full"):
        output.Log.create(tmp_path, JOB)
    assert not list(tmp_path.iterdir())
