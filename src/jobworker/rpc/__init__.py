"""The gRPC border: requests to domain calls, domain errors to statuses. It decides nothing."""

from jobworker.auth import tls13 as tls13  # before anything loads grpc, whose TLS it restricts
