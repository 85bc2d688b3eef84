"""Where a job's process is at its first instruction, as a tracer sees it (ptrace(2)).

The tracer stops each child of the spawning process before it has executed one instruction, and
again at execve. Polling /proc or cgroup.procs could miss a process that is moved quickly; this
cannot.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups.cgroup import Cgroup
from jobworker.shim import spawn

if TYPE_CHECKING:
    from collections.abc import Iterator

CONT, DETACH, SEIZE = 7, 17, 0x4206
TRACE_CHILDREN = 0x2 | 0x4 | 0x8  # PTRACE_O_TRACEFORK, TRACEVFORK and TRACECLONE
TRACE_EXEC = 0x10
EXIT_WITH_TRACER = 0x100000
EVENT_EXEC = 4
WALL = 0x40000000

SPAWNING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from jobworker.shim import spawn
from jobworker.shim.wire import Launch
spawn._calls = spawn._calls._replace(clone3=int(sys.argv[2]))
null, cgroup = os.open("/dev/null", os.O_RDWR), os.open(sys.argv[3], os.O_RDONLY)
spawner = spawn.Spawner()
launch = Launch(job_id="x", executables=["/bin/true"], argv=["true"], env={},
                working_directory="/", cgroup_path=sys.argv[3])
print("ready", flush=True)
sys.stdin.read(1)
spawned = spawner.spawn(launch, stdin=null, output=null, cgroup=cgroup)
os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
"""

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, data: int = 0) -> None:
    if _ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    (path,) = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return path


def trace_spawn(cgroup: Path, clone3: int) -> dict[str, str]:
    """Return the cgroup of the child at its first instruction and at its execve."""
    library = str(Path(spawn.__file__).parents[2])
    command = [sys.executable, "-I", "-S", "-c", SPAWNING, library, str(clone3), str(cgroup)]
    seen: dict[str, str] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        ptrace(SEIZE, process.pid, TRACE_CHILDREN | TRACE_EXEC | EXIT_WITH_TRACER)
        process.stdin.write(b"x")
        process.stdin.flush()
        living = {process.pid}
        while living:
            pid, status = os.waitpid(-1, WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                living.discard(pid)
                process.returncode = status if pid == process.pid else process.returncode
                continue
            if pid not in living and pid != process.pid:
                living.add(pid)
                seen["first instruction"] = cgroup_of(pid)
            if status >> 16 == EVENT_EXEC:
                seen["execve"] = cgroup_of(pid)
            stop = os.WSTOPSIG(status)
            forward = stop if status >> 16 == 0 and stop != signal.SIGTRAP else 0
            ptrace(CONT, pid, forward)
    assert process.returncode == 0
    return seen


@pytest.fixture
def cgroup(cgroup_root: Path) -> Iterator[Path]:
    path = cgroup_root / f"birth-{uuid.uuid4()}"
    path.mkdir()
    yield path
    Cgroup(path).remove()


def test_process_is_in_its_cgroup_from_its_first_instruction(cgroup: Path) -> None:
    assert spawn._calls is not None
    seen = trace_spawn(cgroup, spawn._calls.clone3)
    assert set(seen) == {"first instruction", "execve"}
    assert all(path.endswith(f"/{cgroup.name}") for path in seen.values()), seen


def test_process_is_in_its_cgroup_at_its_execve_where_the_kernel_has_no_clone3(
    cgroup: Path,
) -> None:
    seen = trace_spawn(cgroup, 100_000)
    assert seen["first instruction"] == cgroup_of(os.getpid())
    assert seen["execve"].endswith(f"/{cgroup.name}")
