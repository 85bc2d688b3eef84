"""Requests that many tests make, and commands that wait for a test."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path


def sh(script: str, **fields: Any) -> pb.StartRequest:
    """Return the request to start a shell script."""
    return pb.StartRequest(command=pb.Command(name="sh", args=["-c", script]), **fields)


class Gate:
    """Holds shell scripts up until the test opens it: a FIFO, at which waiting costs nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        os.mkfifo(path)

    @property
    def wait(self) -> str:
        """The command that waits."""
        # open(2) blocks until there is a writer (fifo(7)).
        return f": < {shlex.quote(str(self._path))}"

    def open(self) -> None:
        """Let whoever waits go on, and whoever comes later through."""
        self._fd = os.open(self._path, os.O_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
