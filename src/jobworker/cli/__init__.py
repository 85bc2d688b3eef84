"""The program `jobworker-cli`."""

from jobworker import rpc as rpc  # first of all: it restricts TLS before anything loads grpc
