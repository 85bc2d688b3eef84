"""What the server and its clients have to agree on beside the contract. It imports nothing."""

from __future__ import annotations

from typing import Final

DEFAULT_PORT: Final = 50051
DEFAULT_ADDRESS: Final = f"localhost:{DEFAULT_PORT}"

MAX_MESSAGE: Final = 8 * 1024 * 1024
"""Bytes of one message; grpc's own bound is 4 MiB for what is received.

A request carries up to 1 MiB of standard input and a list of arguments: the bound is above what
execve(2) accepts, so that a client gets the kernel's answer. Messages of output are smaller.
"""
