"""For all tiers: TLS is restricted before any test module can import grpc."""

import jobworker.auth  # noqa: F401
