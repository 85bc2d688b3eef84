from __future__ import annotations

import pytest

import jobworker
from jobworker.rpc import channel


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("localhost:50051", "localhost:50051"),
        ("localhost", "localhost:50051"),
        ("jobs.example.org", "jobs.example.org:50051"),
        ("10.0.0.7:1", "10.0.0.7:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("[fe80::1%eth0]", "[fe80::1%eth0]:50051"),
        ("https://localhost:443", "localhost:443"),
        ("https://localhost", "localhost:50051"),
        ("https://localhost:443/", "localhost:443"),
        ("https://[::1]:443", "[::1]:443"),
    ],
)
def test_a_url_is_a_host_and_maybe_a_port(url, target):
    assert channel.parse_target(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        ":50051",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:port",
        "::1",
        "::1:50051",
        "[::1",
        "http://localhost",
        "dns:///localhost",
        "unix:/run/x.sock",
        "https://localhost/path",
        "https://user@localhost",
        "local host",
        "localhost\n",
        "-host",
        "localhost:٣",
    ],
)
def test_everything_else_is_refused_by_name(url):
    with pytest.raises(ValueError, match=r"host|port") as refusal:
        channel.parse_target(url)
    assert repr(url) in str(refusal.value)


def test_the_user_agent_names_the_program_and_its_version():
    options = dict(channel.options("jobworker-cli"))
    assert options["grpc.primary_user_agent"] == f"jobworker-cli/{jobworker.__version__}"


def test_a_proxy_of_the_environment_is_not_used():
    assert dict(channel.options("x"))["grpc.enable_http_proxy"] == 0


def test_a_stop_request_without_grace_leaves_the_jobs_own():
    assert not channel.stop_request("id", None).HasField("grace")


@pytest.mark.parametrize(
    ("grace", "nanoseconds"), [(0, 0), (1.5, 1_500_000_000), (3600, 36 * 10**11)]
)
def test_a_stop_request_carries_the_grace_even_if_it_is_zero(grace, nanoseconds):
    request = channel.stop_request("id", grace)
    assert request.HasField("grace")
    assert request.grace.ToNanoseconds() == nanoseconds


def test_a_request_for_samples_without_interval_leaves_the_servers_own():
    request = channel.stats_request("id", follow=True, interval=None)
    assert request.follow
    assert not request.HasField("interval")


def test_a_request_for_samples_carries_the_interval():
    request = channel.stats_request("id", follow=False, interval=0.25)
    assert not request.follow
    assert request.interval.ToMilliseconds() == 250


@pytest.mark.parametrize("seconds", [None, 0, 1.5])
def test_a_wait_request_tells_no_time_from_none_at_all(seconds):
    request = channel.wait_request("id", seconds)
    assert request.HasField("timeout") == (seconds is not None)
    assert request.timeout.ToNanoseconds() == (seconds or 0) * 1e9
