"""What the machine does without jobworker: a bare spawn loop, and a bare TLS 1.3 socket pair.

Run as a program it is the other process of a pair: ``spawn COUNT`` waits for a line and runs the
loop, ``send FILE CERT KEY CA`` prints its port and sends the file to whoever connects and asks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1024 * 1024
WORKERS: Final = 8

_TRUE: Final = shutil.which("true") or "/bin/true"
_THIS: Final = str(Path(__file__).resolve())


def spawn(count: int) -> float:
    """Run ``true`` `count` times, one after the other; return seconds for each.

    os.posix_spawn is glibc's, which uses CLONE_VM | CLONE_VFORK: the caller's size does not matter.
    """
    began = time.perf_counter()
    for _ in range(count):
        pid = os.posix_spawn(_TRUE, [_TRUE], {})
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"{_TRUE} ended with the wait status {status}"
    return (time.perf_counter() - began) / count


@contextlib.contextmanager
def spawners(count: int, workers: int = WORKERS) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have `workers` processes ready to run ``true`` `count` times each.

    They are processes, because os.posix_spawn keeps the interpreter's lock while it waits for the
    child's execve.
    """
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-IS", _THIS, "spawn", str(count)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for _ in range(workers)
        ]


def spawn_in_parallel(count: int, workers: int = WORKERS) -> float:
    """Run ``true`` `count` times in each of `workers` processes; return starts a second in all."""
    with spawners(count, workers) as processes:
        for process in processes:
            _readline(process)
        began = time.perf_counter()
        for process in processes:
            _write(process, b"go\n")
        for process in processes:
            _readline(process)
        return workers * count / (time.perf_counter() - began)


class Socket:
    """A process that sends a file over mutual TLS 1.3 on the loopback, 1 MiB a send."""

    def __init__(self, file: Path, certs: Path) -> None:
        """Start it; `certs` holds the files that ``jobworker certs init`` makes."""
        server = [str(certs / name) for name in ("jobworker.crt", "jobworker.key", "ca.crt")]
        self._process = subprocess.Popen(
            [sys.executable, "-IS", _THIS, "send", str(file), *server], stdout=subprocess.PIPE
        )
        self._port = int(_readline(self._process))
        self._context = ssl.create_default_context(cafile=certs / "ca.crt")
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(certs / "user_alpha.crt", certs / "user_alpha.key")
        self._size = file.stat().st_size
        self._buffer = bytearray(MIB)

    def receive(self) -> float:
        """Receive the file once and count its bytes; return MB a second.

        The handshake does not count: a client of jobworker is connected too.
        """
        with (
            socket.create_connection(("localhost", self._port)) as plain,
            self._context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            name, version, _ = connection.cipher() or ("none", "none", 0)
            assert "AES" in name, f"the cipher is {name}"
            assert version == "TLSv1.3", f"the version is {version}"
            began = time.perf_counter()
            connection.sendall(b"?")
            received = 0
            while count := connection.recv_into(self._buffer):
                received += count
            elapsed = time.perf_counter() - began
        assert received == self._size, f"{received} bytes instead of {self._size}"
        return received / elapsed / 1e6

    def close(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.communicate()


def _send(file: Path, cert: str, key: str, ca: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(cert, key)
    with socket.create_server(("localhost", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            plain, _ = listener.accept()
            with (
                context.wrap_socket(plain, server_side=True) as connection,
                file.open("rb") as data,
            ):
                connection.recv(1)
                while piece := data.read(MIB):
                    connection.sendall(piece)


def _readline(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process {process.args!r} has ended"
    return line


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def _main() -> None:
    match sys.argv[1:]:
        case ["spawn", count]:
            print("ready", flush=True)
            sys.stdin.readline()
            spawn(int(count))
            print("done", flush=True)
        case ["send", file, cert, key, ca]:
            _send(Path(file), cert, key, ca)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    _main()
