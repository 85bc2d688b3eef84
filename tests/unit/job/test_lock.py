import subprocess
import sys

import pytest

from jobworker.errors import AlreadyLocked, ConfigError
from jobworker.job.lock import DirectoryLock

HOLD = """
import sys, pathlib
from jobworker.job.lock import DirectoryLock
lock = DirectoryLock.acquire(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path):
    with (
        DirectoryLock.acquire(tmp_path / "run"),
        pytest.raises(AlreadyLocked, match=r"pid \d+.*run"),
    ):
        DirectoryLock.acquire(tmp_path / "run")


def test_a_released_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        DirectoryLock.acquire(tmp_path).release()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(AlreadyLocked, match=str(holder.pid)):
            DirectoryLock.acquire(tmp_path)
        holder.kill()
        holder.wait()
        DirectoryLock.acquire(tmp_path).release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/run"):
        DirectoryLock.acquire(tmp_path / "file" / "run")
