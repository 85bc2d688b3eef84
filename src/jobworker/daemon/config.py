"""The server's settings: flag, then environment, then configuration file, then default."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from jobworker.auth.policy import Policy
from jobworker.errors import ConfigError
from jobworker.rpc.defaults import DEFAULT_PORT

DEFAULT_CONFIG: Final = Path("/etc/jobworker/jobworker.toml")
ENV_PREFIX: Final = "JOBWORKER"
SERVER_PREFIX: Final = "JOBWORKER_SERVER"

_EVERY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - they are recognized, not used

_Path = Annotated[str, msgspec.Meta(min_length=1)]


class ConfigFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename="kebab"):
    """What a configuration file may say; a key is a flag of ``jobworker serve`` without dashes."""

    listen: str | None = None
    cert: _Path | None = None
    key: _Path | None = None
    ca: _Path | None = None
    log_dir: _Path | None = None
    state_dir: _Path | None = None
    run_dir: _Path | None = None
    cgroup_root: _Path | None = None
    audit_log: _Path | None = None
    users: dict[str, list[str]] | None = None

    def defaults(self) -> dict[str, str]:
        """Return the settings given, by the names of the flags' parameters."""
        given = msgspec.structs.asdict(self)
        return {k: v for k, v in given.items() if v is not None and k != "users"}

    def policy(self) -> Policy:
        """Return who may do what: the file's users instead of the seed's, if it names any.

        Raises ConfigError for an unknown role or an impossible user's name.
        """
        return Policy() if self.users is None else Policy.from_names(self.users)


def read(path: Path | None) -> ConfigFile:
    """Read a configuration file; None means the default one, which may be missing.

    Raises ConfigError with the file and the key.
    """
    try:
        content: dict[str, Any] = tomllib.loads((path or DEFAULT_CONFIG).read_text())
        return msgspec.convert(content, ConfigFile)
    except FileNotFoundError:
        if path is None:
            return ConfigFile()
        raise ConfigError(f"cannot read the configuration {path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path or DEFAULT_CONFIG}: {error.strerror}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"cannot use the configuration {path or DEFAULT_CONFIG}: {error}"
        ) from error


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``HOST``, ``:PORT`` or ``[IPV6]:PORT``.

    Port 0 lets the kernel choose. Raises ConfigError.
    """
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
    host = reachable_host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
