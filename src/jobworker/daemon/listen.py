"""Where the server listens: what the setting says, and a port that is free on every address."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from jobworker.errors import ConfigError
from jobworker.rpc.defaults import DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence

_EVERY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - they are recognized, not used
_NOT_OF_THIS_HOST: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_TRIES: Final = 20

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str | int, ...]]
"""What getaddrinfo returns of one."""


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``HOST``, ``:PORT`` or ``[IPV6]:PORT``.

    Port 0 lets the kernel choose. Raises ConfigError.
    """
    if text.isascii() and text.isdigit():
        raise ConfigError(
            f"cannot listen on {text!r}: it is not HOST:PORT; did you mean localhost:{text}?"
        )
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")) or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ConfigError(f"cannot listen on {text!r}: the port is not a number from 0 to 65535")
    return host, int(port)


def reachable_host(host: str) -> str:
    """Return where clients on this host reach a server that listens on `host`.

    A server that listens on every address has none of its own, and no client takes an empty one.
    """
    return "localhost" if host in _EVERY_ADDRESS else host


def client_address(host: str, port: int) -> str:
    """Return what clients on this host can be given as the address of a server on `host`."""
    return address(reachable_host(host), port)


def address(host: str, port: int) -> str:
    """Write a host and a port as one, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class AddressInUse(ConfigError):
    """Raised when one of the addresses has another listener."""


def free_port(host: str, port: int) -> int:
    """Return `port`, or for 0 one that the kernel chooses, that is free on all addresses of `host`.

    gRPC is content with one address of several: a server on localhost would have ::1, and another
    program 127.0.0.1. Addresses that this host does not have (::1 without IPv6) do not count. What
    is free now can be taken before gRPC has it. Raises AddressInUse or another ConfigError.
    """
    where = address(host, port)
    try:
        found: Sequence[Address] = socket.getaddrinfo(  # type: ignore[assignment]
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or "it is not a host name"
        raise ConfigError(f"cannot listen on {where}: {why}") from error
    for tries_left in reversed(range(_TRIES if port == 0 else 1)):
        try:
            return _bind_all(where, found, port)
        except AddressInUse:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _bind_all(where: str, found: Sequence[Address], port: int) -> int:
    """Bind every address for a moment, all to one port, and return the port."""
    bound = 0
    why = "it has no address"
    with ExitStack() as stack:
        for family, kind, protocol, _, (name, _port, *rest) in found:
            try:
                probe = stack.enter_context(socket.socket(family, kind, protocol))
                # As gRPC does: what is left of connections that have ended is in nobody's way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    # Here IPv4 has a socket of its own.
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((name, bound or port, *rest))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUse(
                        f"cannot listen on {where}: {name} is in use; stop what uses it, or give "
                        "another --listen"
                    ) from error
                why = error.strerror or str(error)
                if error.errno not in _NOT_OF_THIS_HOST:
                    break
            else:
                bound = probe.getsockname()[1]
        else:
            if bound:
                return bound
    raise ConfigError(f"cannot listen on {where}: {why}")
