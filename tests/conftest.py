"""What holds for every test: gRPC is restricted to TLS 1.3 before anything imports it."""

import jobworker.auth  # noqa: F401
