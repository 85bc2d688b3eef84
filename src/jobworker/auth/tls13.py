"""Leaves gRPC nothing to negotiate below TLS 1.3.

grpcio has no setting for the lowest TLS version (grpc/grpc#37305). Its cipher suites can be chosen
through an environment variable, which BoringSSL applies to TLS 1.2 alone: those of 1.3 are fixed.
A list that holds nothing but a pre-shared-key suite leaves 1.2 without a suite that anybody could
use, since gRPC knows no pre-shared keys. Verified with grpcio 1.85: a server refuses TLS 1.2, a
client does not connect to a server that speaks only 1.2, and 1.3 works for both, with EC and RSA.

gRPC's core copies the variable when the extension module is loaded (``import grpc``); setting it
later changes nothing. Importing this module sets it, and the packages that use gRPC import this
module first. It imports nothing but the standard library and `errors`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from jobworker.errors import ConfigError

VARIABLE: Final = "GRPC_SSL_CIPHER_SUITES"
CIPHER_SUITES: Final = "ECDHE-PSK-CHACHA20-POLY1305"
"""A suite that BoringSSL knows; one that it does not know keeps every server from starting."""

_GRPC_CORE = "grpc._cython.cygrpc"


def _process_was_started_with_it() -> bool:
    # The block of proc(5) environ is the one that execve was given: what a program put into its
    # environment after it had imported grpc does not show there.
    try:
        block = Path("/proc/self/environ").read_bytes()
    except OSError:
        return False
    return f"{VARIABLE}={CIPHER_SUITES}".encode() in block.split(b"\0")


def _restrict() -> bool:
    if _GRPC_CORE in sys.modules:
        return _process_was_started_with_it()
    os.environ[VARIABLE] = CIPHER_SUITES
    return True


_restricted: Final = _restrict()


def check() -> None:
    """Make sure that gRPC was loaded with the restriction in place.

    Raises ConfigError if grpc was imported before this package, in a process that was not started
    with the variable, or if the variable has been changed since.
    """
    if _restricted and os.environ.get(VARIABLE) == CIPHER_SUITES:
        return
    raise ConfigError(
        "cannot restrict gRPC to TLS 1.3: grpc was imported before jobworker.auth, or "
        f"{VARIABLE} has been changed; import jobworker.auth first, or start the process with "
        f"{VARIABLE}={CIPHER_SUITES}"
    )
