"""The program `jobworker`: configuration, start, signals, shutdown."""

from jobworker.auth import tls13 as tls13  # before anything loads grpc, whose TLS it restricts
