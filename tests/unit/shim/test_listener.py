"""The shim's lock and socket."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import listener, wire
from jobworker.shim.listener import Listener
from jobworker.shim.loop import Loop
from jobworker.shim.spawn import Spawner
from jobworker.shim.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def held(directory: int) -> Iterator[int]:
    fd = listener.lock(directory)
    assert fd is not None
    yield fd
    os.close(fd)


@pytest.fixture
def listening(directory: int, held: int) -> Iterator[Listener]:
    listening = Listener(directory, held)
    yield listening
    late = listening.retire()
    if late is not None:
        late.close()


def connect(directory: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(listener.socket_address(directory))
    return sock


def test_lock_is_held_by_one(directory: int) -> None:
    held = listener.lock(directory)
    assert held is not None
    assert listener.lock(directory) is None
    os.close(held)
    again = listener.lock(directory)
    assert again is not None
    os.close(again)


def test_lock_is_never_taken_through_a_link(tmp_path: Path, directory: int) -> None:
    (tmp_path / wire.LOCK_NAME).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        listener.lock(directory)


def test_socket_that_was_left_behind_is_replaced(directory: int, held: int) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(listener.socket_address(directory))
    assert not listener.answers(directory)
    listening = Listener(directory, held)
    assert listener.answers(directory)
    probe = listening.retire()
    assert probe is not None
    probe.close()


def test_retired_socket_is_gone(tmp_path: Path, directory: int, held: int) -> None:
    assert Listener(directory, held).retire() is None
    assert not (tmp_path / wire.SOCKET_NAME).exists()


def test_socket_that_was_removed_can_be_reopened(
    tmp_path: Path, directory: int, listening: Listener
) -> None:
    assert not listening.is_unreachable()
    (tmp_path / wire.SOCKET_NAME).unlink()
    assert listening.is_unreachable()
    listening.reopen()
    assert not listening.is_unreachable()
    with connect(directory):
        accepted = listening.accept()
    assert accepted is not None
    accepted.close()


def test_socket_of_another_shim_is_left_alone(tmp_path: Path, listening: Listener) -> None:
    for name in (wire.SOCKET_NAME, wire.LOCK_NAME):
        (tmp_path / name).unlink()
    assert not listening.is_unreachable()
    for name in (wire.SOCKET_NAME, wire.LOCK_NAME):
        (tmp_path / name).touch()
    assert not listening.is_unreachable()


def test_accept_without_a_connection_returns_none(listening: Listener) -> None:
    assert listening.accept() is None


def test_shim_stays_for_a_server_that_connects_while_it_leaves(
    directory: int, listening: Listener
) -> None:
    loop = Loop()
    supervisor = Supervisor(loop, listening, Spawner(), boot_id="b")
    supervisor._expect_nobody()
    assert supervisor._idle()
    with connect(directory) as sock:
        assert supervisor._leave() is False
        assert not supervisor._idle()
        sock.sendall(wire.encode({"id": 1, "op": "hello", "args": {}}))
        loop.run_once()
        assert b'"ok"' in sock.recv(4096)
        with connect(directory) as other:
            loop.run_once()
            assert len(supervisor._connections) == 2
            other.close()
            loop.run_once()
    loop.run_once()
    assert supervisor._idle()
    assert supervisor._leave() is True
    loop.close()
    listening.open()
