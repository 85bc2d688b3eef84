"""Who a caller is (certificates), and what a caller may do (roles)."""

from jobworker.auth import tls13 as tls13  # first of all: it acts before anything loads grpc
