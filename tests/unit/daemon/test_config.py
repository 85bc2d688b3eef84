import pytest

from jobworker.auth.policy import Policy, Role
from jobworker.daemon.config import client_address, parse_listen, read
from jobworker.errors import ConfigError
from jobworker.rpc.channel import parse_target


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "jobworker.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_gives_defaults_for_the_flags(write):
    file = read(write('listen = "0.0.0.0:1"\nlog-dir = "/logs"'))
    assert file.defaults() == {"listen": "0.0.0.0:1", "log_dir": "/logs"}


def test_an_empty_file_leaves_the_seeds_users(write):
    assert read(write("")).policy() == Policy()


def test_users_in_the_file_replace_the_seeds(write):
    policy = read(write('[users]\ncharlie = ["query"]')).policy()
    assert policy.users == {"charlie": frozenset({Role.QUERY})}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("listne = 'x'", "listne"),
        ("listen = 5", "listen"),
        ("log-dir = ''", "log-dir"),
        ("listen = ", "Invalid value"),
        ("[users]\ncharlie = 'query'", "charlie|users"),
    ],
)
def test_a_mistake_is_named_with_the_file(write, text, named):
    with pytest.raises(ConfigError, match=rf"jobworker\.toml.*({named})"):
        read(write(text))


def test_an_unknown_role_is_named(write):
    with pytest.raises(ConfigError, match="admin"):
        read(write('[users]\ncharlie = ["admin"]')).policy()


def test_a_file_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "missing.toml")


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
