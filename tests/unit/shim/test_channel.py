"""Messages and descriptors on a socket."""

from __future__ import annotations

import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import wire
from jobworker.shim.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_descriptors() -> list[int]:
    return [fd for fd in range(256) if is_open(fd)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    before = open_descriptors()
    left, right = socket.socketpair()
    channels = Channel(left), Channel(right)
    yield channels
    for channel in channels:
        channel.close()
    assert open_descriptors() == before, "descriptors were leaked"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def raw(channel: Channel) -> socket.socket:
    return channel._socket


def receive_all(channel: Channel) -> list[dict[str, object]]:
    messages = []
    channel.read()
    while (received := channel.next()) is not None:
        messages.append(received.message)
        for fd in received.fds:
            os.close(fd)
    return messages


def test_message_arrives_with_its_descriptors(
    pair: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    left, right = pair
    left.send({"a": 1}, [pipe[1]])
    right.read()
    received = right.next()
    assert received is not None
    (fd,) = received.fds
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    os.close(fd)
    assert os.read(pipe[0], 1) == b"x"


def test_descriptors_stay_with_their_message_in_a_row_of_messages(
    pair: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    left, right = pair
    left.send({"n": 0})
    left.send({"n": 1}, [pipe[0]])
    left.send({"n": 2})
    left.send({"n": 3}, [pipe[0], pipe[1]])
    counts = {}
    while len(counts) < 4:
        right.read()
        while (received := right.next()) is not None:
            counts[received.message["n"]] = len(received.fds)
            for fd in received.fds:
                os.close(fd)
    assert counts == {0: 0, 1: 1, 2: 0, 3: 2}


def test_sender_may_close_its_descriptors_before_they_are_sent(
    pair: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    left, right = pair
    large = {"text": "x" * 1_000_000}
    left.send(large)
    assert left.pending
    copy = os.dup(pipe[1])
    left.send({"last": True}, [copy])
    os.close(copy)
    received = []
    while not received or not received[-1].message.get("last"):
        left.flush()
        right.read()
        while (each := right.next()) is not None:
            received.append(each)
    assert not left.pending
    os.write(received[-1].fds[0], b"x")
    os.close(received[-1].fds[0])
    assert os.read(pipe[0], 1) == b"x"


def test_peer_that_does_not_read_cannot_fill_the_memory(pair: tuple[Channel, Channel]) -> None:
    left, _ = pair
    message = {"text": "x" * (wire.MAX_MESSAGE - 100)}
    left.send(message)
    left.send(message)
    with pytest.raises(ConnectionAbortedError):
        left.send(message)
    assert left.pending <= 2 * wire.MAX_MESSAGE


def test_end_of_stream_is_told(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    left.close()
    with pytest.raises(EOFError):
        right.read()


def test_spurious_wakeup_reads_nothing(pair: tuple[Channel, Channel]) -> None:
    assert receive_all(pair[0]) == []


@pytest.mark.parametrize(
    ("announced", "sent"), [(None, 1), (0, 2), (2, 1), (1, 2), (1, 0), ("1", 1), (-1, 1), ([], 3)]
)
def test_descriptors_other_than_announced_break_the_channel(
    pair: tuple[Channel, Channel], pipe: tuple[int, int], announced: object, sent: int
) -> None:
    left, right = pair
    message = {} if announced is None else {"fds": announced}
    socket.send_fds(raw(left), [wire.encode(message)], [pipe[0]] * sent)
    with pytest.raises(ValueError, match="descriptors"):
        receive_all(right)


def test_too_many_descriptors_are_closed_and_count_as_lost(
    pair: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    left, right = pair
    socket.send_fds(raw(left), [wire.encode({"fds": 100})], [pipe[0]] * 100)
    right.read()
    received = right.next()
    assert received is not None
    assert received.fds == []


def test_descriptors_that_find_no_number_are_lost_and_the_message_is_not(
    pair: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    left, right = pair
    left.send({"n": 1}, [pipe[0], pipe[1]])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
    try:
        right.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    received = right.next()
    assert received is not None
    assert (received.message["n"], received.fds) == (1, [])


def test_descriptors_of_a_message_that_never_ends_are_closed_with_the_channel(
    pair: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    left, right = pair
    socket.send_fds(raw(left), [wire.encode({"fds": 1})[:-1]], [pipe[0]])
    assert receive_all(right) == []
