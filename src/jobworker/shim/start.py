"""How a server reaches the shim of a run directory, and starts one. Blocking: for a thread."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import jobworker
from jobworker.errors import ShimUnavailable
from jobworker.shim import wire
from jobworker.shim.listener import socket_address
from jobworker.shim.silence import explain_silence

_SOCKET: Final = re.compile(r"shim(?:-([0-9]{1,9}))?\.sock")
_PATIENCE: Final = 15.0
"""Seconds that a shim may take to start, or to accept a connection."""


def versions(run_dir: Path) -> list[int]:
    """Return the versions of the shims whose sockets lie in a run directory."""
    found = (_SOCKET.fullmatch(path.name) for path in run_dir.glob("shim*.sock"))
    named = ((int(match[1] or 1), match[0]) for match in found if match)
    return sorted(version for version, name in named if name == wire.socket_name(version))


def connect(run_dir: Path, version: int) -> socket.socket | None:
    """Return a connection to the shim of a version, or None if none listens.

    Raises ShimUnavailable.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_PATIENCE)
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(socket_address(directory, wire.socket_name(version)))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        finally:
            os.close(directory)
    except BlockingIOError as error:  # As many connections as may wait for it do (connect(2)).
        sock.close()
        raise ShimUnavailable(explain_silence(run_dir, version)) from error
    except OSError as error:
        sock.close()
        raise ShimUnavailable(f"cannot reach the shim in {run_dir}: {error}") from error
    return sock


def program() -> str:
    """Return the text of the program that becomes the shim."""
    library = str(Path(jobworker.__file__).parent.parent)
    return (
        f"import sys; sys.path.insert(0, {library!r}); from jobworker.shim.main import main; main()"
    )


def start(run_dir: Path) -> None:
    """Start a shim unless there is one; it listens when this returns. Raises ShimUnavailable.

    Neither a fork nor `preexec_fn`: the process that asks has gRPC's threads. The interpreter is
    isolated and loads no site packages, because all that it maps makes every launch slower.
    """
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program(), str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShimUnavailable(f"cannot start a shim in {run_dir}: {error}") from error
    if process.returncode != 0:
        said = process.stderr.decode(errors="replace").strip()
        raise ShimUnavailable(said or f"the shim's start failed with {process.returncode}")
