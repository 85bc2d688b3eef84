"""Peers that do not keep to the protocol harm nobody but themselves."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from jobworker.shim import wire
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Host

    from jobworker.shim import Client

LAUNCH = {
    "job_id": "x",
    "executables": ["/bin/true"],
    "argv": ["true"],
    "env": {},
    "working_directory": "/",
    "cgroup_path": "/",
}


def connect(host: Host) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(host.run_dir / wire.SOCKET_NAME))
    return sock


def replies(sock: socket.socket) -> list[dict[str, Any]]:
    """Read until the shim closes the connection or answers one request."""
    decoder = wire.Decoder()
    found: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionResetError):
        while not found and (data := sock.recv(65536)):
            decoder.feed(data)
            while (message := decoder.next()) is not None:
                found.append(message)
    return found


def request(op: object, args: object = None, **more: object) -> bytes:
    return wire.encode({"id": 1, "op": op, "args": args, **more})


def send_pipes(count: int, data: bytes) -> Callable[[socket.socket], None]:
    def send(sock: socket.socket) -> None:
        fds = os.pipe()
        socket.send_fds(sock, [data], [fds[0]] * count)
        for fd in fds:
            os.close(fd)

    return send


def just(data: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(data)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(just(b"GET / HTTP/1.1\r\n\r\n"), id="http"),
        pytest.param(just(b"\xff\xff\xff\xff"), id="oversized"),
        pytest.param(just(b"\x00\x00\x00\x01["), id="no json"),
        pytest.param(just(b"\x00\x00\x00\x02[]"), id="no object"),
        pytest.param(just(b"\x00\x01\x86\xa0" + b"[" * 100_000), id="deep"),
        pytest.param(just(request("fly")), id="unknown operation"),
        pytest.param(just(request(["hello"])), id="operation of another type"),
        pytest.param(just(wire.encode({})), id="empty"),
        pytest.param(just(request("launch")), id="launch without arguments"),
        pytest.param(just(request("launch", LAUNCH)), id="launch without descriptors"),
        pytest.param(just(request("launch", LAUNCH, fds=4)), id="announced but not sent"),
        pytest.param(send_pipes(4, request("launch", LAUNCH)), id="sent but not announced"),
        pytest.param(send_pipes(3, request("launch", LAUNCH, fds=3)), id="too few"),
        pytest.param(send_pipes(200, request("launch", LAUNCH, fds=200)), id="too many"),
        pytest.param(send_pipes(4, request("launch", LAUNCH, fds=4)), id="pipes for directories"),
        pytest.param(send_pipes(4, request("hello", fds=4)), id="descriptors for hello"),
        pytest.param(just(request("attach", {"job_id": ["x"]})), id="job id of another type"),
        pytest.param(just(request("stop", {"job_id": "x"})), id="stop of no job"),
        pytest.param(just(request("attach")), id="attach to nothing"),
    ],
)
async def test_nonsense_is_answered_or_hung_up_on_and_harms_nobody(
    host: Host, client: Client, send: Callable[[socket.socket], None]
) -> None:
    job = await host.launch(client, "sleep", "1000")
    before = host.shim_descriptors()
    with connect(host) as sock:
        send(sock)
        for reply in replies(sock):
            assert "error" in reply or reply["ok"]
            assert reply.get("error", {}).get("kind", "bad_request") in wire.ERROR_KINDS
    await host.until(lambda: host.shim_descriptors() == before)
    assert job.cgroup.populated()
    _, record = await host.run(client, "true")
    assert record.exit_code == 0


@pytest.mark.parametrize(
    ("signum", "grace"),
    [(0, 1), (65, 1), (-9, 1), ("9", 1), (True, 1), (9, -1), (9, None), (9, "1"), (9, 1e300)],
)
async def test_stop_with_nonsense_is_refused_and_stops_nothing(
    host: Host, client: Client, signum: object, grace: object
) -> None:
    job = await host.launch(client, "sleep", "1000")
    with connect(host) as sock:
        sock.sendall(request("stop", {"job_id": job.id, "signal": signum, "grace": grace}))
        (reply,) = replies(sock)
    assert reply["error"]["kind"] == "bad_request"
    _, _ = await host.run(client, "true")
    assert job.cgroup.populated()


async def test_peer_that_hangs_up_in_the_middle_of_a_message_leaves_nothing(
    host: Host, client: Client
) -> None:
    await host.run(client, "true")
    before = host.shim_descriptors()
    for _ in range(20):
        with connect(host) as sock:
            send_pipes(4, request("launch", LAUNCH, fds=4)[:-1])(sock)
    await host.until(lambda: host.shim_descriptors() == before)


async def test_peer_that_never_reads_is_dropped_and_delays_nobody(
    host: Host, client: Client
) -> None:
    await host.run(client, "true")
    before = host.shim_descriptors()
    echo = wire.encode({"id": "x" * 1_000_000, "op": "fly"})
    with connect(host) as sock:
        sock.settimeout(0.2)
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            for _ in range(200):
                sock.sendall(echo)
        assert "does not read" in (host.run_dir / wire.LOG_NAME).read_text()
        _, record = await host.run(client, "true")
        assert record.exit_code == 0
        await host.until(lambda: host.shim_descriptors() == before)


async def test_peer_of_another_user_is_refused(host: Host, client: Client) -> None:
    host.run_dir.chmod(0o755)
    path = host.run_dir / wire.SOCKET_NAME
    path.chmod(0o777)
    program = (
        "import os, socket, sys\n"
        "os.setuid(int(sys.argv[3]))\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.connect(sys.argv[1])\n"
        "sock.sendall(bytes.fromhex(sys.argv[2]))\n"
        "print(sock.recv(100))\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(path), request("hello").hex()]
    answers = {}
    for user in ("0", "65534"):
        answers[user] = subprocess.run([*command, user], capture_output=True, check=False)
    assert b"version" in answers["0"].stdout
    assert b"version" not in answers["65534"].stdout
    assert "refused a connection of user 65534" in (host.run_dir / wire.LOG_NAME).read_text()
    await host.run(client, "true")
