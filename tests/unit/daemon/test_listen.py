from __future__ import annotations

import socket

import pytest

from jobworker.daemon.listen import client_address, free_port, parse_listen
from jobworker.errors import ConfigError
from jobworker.rpc.channel import parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:0", ("localhost", 0)),
        ("localhost", ("localhost", 50051)),
        (":80", ("", 80)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("[::1]", ("::1", 50051)),
        ("::1", ("::1", 50051)),
    ],
)
def test_a_listen_address_is_host_and_port(text, expected):
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["localhost:", "localhost:x", "localhost:65536", "h:-1", "h:٣"])
def test_a_bad_port_is_refused(text):
    with pytest.raises(ConfigError, match="port"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (":50051", "localhost:50051"),
        ("0.0.0.0:1", "localhost:1"),
        ("[::]:1", "localhost:1"),
        ("[::1]:1", "[::1]:1"),
        ("192.0.2.1:1", "192.0.2.1:1"),
        ("lab.example.org", "lab.example.org:50051"),
    ],
)
def test_the_address_that_is_announced_is_one_that_the_client_takes(listen, address):
    assert client_address(*parse_listen(listen)) == address
    assert parse_target(address) == address


def test_a_bare_port_is_refused_with_what_was_meant():
    with pytest.raises(ConfigError, match=r"'50052': .* did you mean localhost:50052\?"):
        parse_listen("50052")


@pytest.fixture
def taken():
    """A port of 127.0.0.1 that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_a_port_that_is_taken_on_one_address_of_several_is_named(taken, host):
    with pytest.raises(ConfigError, match=rf"{taken}: (127|0)\.0\.0\.[01] is in use; .* --listen"):
        free_port(host, taken)


def test_a_port_that_is_free_is_the_one():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert free_port("localhost", port) == port


def test_port_0_is_one_that_is_free_on_every_address():
    port = free_port("localhost", 0)
    for *kind, _, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
        with socket.socket(*kind) as listener:
            listener.bind(address)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid", "a host", "a..b"])
def test_a_host_that_is_not_this_one_is_named(host):
    with pytest.raises(ConfigError, match=r"cannot listen on \[?" + host):
        free_port(host, 1)
