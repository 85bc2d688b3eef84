"""How a server notices that a client is gone without a word: gRPC's options. Pure."""

from __future__ import annotations

from typing import Final

TIME: Final = 30.0
"""Seconds of silence after which a client is asked for a sign of life."""
TIMEOUT: Final = 20.0
"""Seconds that it has for it."""


def server_options(time: float = TIME, timeout: float = TIMEOUT) -> list[tuple[str, int]]:
    """Return a server's options: a silent client is dropped after `time` and `timeout` seconds."""
    return [
        ("grpc.keepalive_time_ms", round(time * 1000)),
        ("grpc.keepalive_timeout_ms", round(timeout * 1000)),
        # Of the two, gRPC takes the longer one (1.85), and this one's default is a minute.
        ("grpc.http2.ping_timeout_ms", round(timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # A follower of a quiet job is sent no data between two pings, for hours.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
