"""Where the server is and who the user is: flag, then environment, then context, then default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobworker.errors import ConfigError
from jobworker.rpc.defaults import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Mapping

WHAT: Final[Mapping[str, str]] = {
    "cert": "client certificate",
    "key": "private key of the client certificate",
    "ca": "certificate of the authority that signed the server's certificate",
}
"""The files that mutual TLS needs, by the name of their flag."""


_KEYS: Final = ("current", "contexts")


class Connection(NamedTuple):
    """All that is needed to reach a server."""

    url: str
    cert: Path
    key: Path
    ca: Path


def config_path(environ: Mapping[str, str]) -> Path:
    """Return the configuration file of the user (XDG base directory specification 0.8)."""
    base = environ.get("XDG_CONFIG_HOME", "")
    # The specification says that a relative path in the variable is to be ignored.
    directory = Path(base) if base.startswith("/") else _expand("~/.config")
    return directory / "jobworker" / "config.toml"


def resolve(
    given: Mapping[str, str | None], context: str | None, environ: Mapping[str, str] = os.environ
) -> Connection:
    """Complete what flags and environment have `given` (url, cert, key, ca) from a context.

    The file is read only if something is missing or a context is asked for by name. Raises
    ConfigError that says which flag or variable is missing, or what is wrong with the file.
    """
    values = {name: value for name, value in given.items() if value}
    path = config_path(environ)
    if context or len(values) < len(given):
        values = load(path, context) | values
    for name, what in WHAT.items():
        if not values.get(name):
            if not context and (known := _contexts(path)):
                raise ConfigError(
                    f"no context is chosen; set current in {path}, or give --context (there is: "
                    f"{', '.join(known)})"
                )
            raise ConfigError(
                f"no {what}: give --{name} FILE, set JOBWORKER_{name.upper()}, "
                f"or write {name} into a context of {path}"
            )
    cert, key, ca = (_expand(values[name]).absolute() for name in WHAT)
    return Connection(url=values.get("url") or DEFAULT_ADDRESS, cert=cert, key=key, ca=ca)


def load(path: Path, context: str | None) -> dict[str, str]:
    """Read one context (None: the current one, if any) from a configuration file.

    Relative paths in it are relative to the file. Raises ConfigError.
    """
    config = _read(path)
    if config is None:
        if context:
            raise ConfigError(f"cannot use the context {context!r}: there is no {path}")
        return {}
    name = context or config.get("current")
    if name is None:
        return {}
    contexts = config.get("contexts", {})
    if not isinstance(name, str) or not isinstance(contexts, dict) or name not in contexts:
        known = ", ".join(sorted(contexts)) if isinstance(contexts, dict) else ""
        raise ConfigError(f"{path} has no context {name!r}; it has {known or 'none'}")
    return _checked(path, name, contexts[name])


def _contexts(path: Path) -> list[str]:
    """Return the names of the contexts of a file that has chosen none of them."""
    config = _read(path) or {}
    contexts = config.get("contexts")
    return sorted(contexts) if isinstance(contexts, dict) and "current" not in config else []


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    import tomllib  # noqa: PLC0415 - not for those who have no such file

    try:
        config = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    for key in config:
        if key not in _KEYS:
            raise ConfigError(f"{path} has an unknown key {key!r}; known are {', '.join(_KEYS)}")
    return config


def _checked(path: Path, name: str, context: object) -> dict[str, str]:
    keys = ("url", *WHAT)
    where = f"{path}: context {name!r}"
    if not isinstance(context, dict):
        raise ConfigError(f"{where} must be a table, [contexts.{name}]")
    for key, value in context.items():
        if key not in keys:
            raise ConfigError(f"{where} has an unknown key {key!r}; known are {', '.join(keys)}")
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {key} must be a string")
    return {
        key: value if key == "url" else str(path.parent / _expand(value))
        for key, value in context.items()
    }


def _expand(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"cannot use {path}: {error}") from error
