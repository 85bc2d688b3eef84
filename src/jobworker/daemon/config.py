"""The server's settings: flag, then environment, then configuration file, then default."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobworker.auth.policy import Policy
from jobworker.cgroups.delegation import OWN
from jobworker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_CONFIG: Final = Path("/etc/jobworker/jobworker.toml")
ENV_PREFIX: Final = "JOBWORKER"
SERVER_PREFIX: Final = "JOBWORKER_SERVER"

_PATHS: Final = (
    "cert", "key", "ca", "log-dir", "state-dir", "run-dir", "cgroup-root", "audit-log"
)  # fmt: skip
_NO_PATH: Final = ("cgroup-root", str(OWN))
_QUANTITIES: Final = (
    "keep-for", "keep-jobs", "keep-bytes", "max-running-jobs", "max-running-jobs-per-user",
    "max-streams-per-user",
    "output-max",
)  # fmt: skip
SETTINGS: Final = ("listen", *_PATHS, *_QUANTITIES, "users")
"""What a configuration file may say; but for `users` a key is a flag of ``serve``."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a configuration file says."""

    path: Path
    settings: Mapping[str, str | int]
    users: Mapping[str, Sequence[str]] | None = None

    def defaults(self) -> dict[str, str]:
        """Return the settings by the names of the flags' parameters.

        A relative path is relative to the file.
        """
        directory = self.path.absolute().parent
        return {
            key.replace("-", "_"): str(value)
            if key not in _PATHS or (key, value) == _NO_PATH
            else str(directory / str(value))
            for key, value in self.settings.items()
        }

    def policy(self) -> Policy:
        """Return who may do what: the file's users instead of the seed's, if it names any.

        Raises ConfigError for an unknown role or an impossible user's name.
        """
        if self.users is None:
            return Policy()
        try:
            return Policy.from_names(self.users)
        except ConfigError as error:
            raise ConfigError(f"cannot use the configuration {self.path}: {error}") from error


def read(path: Path | None) -> ConfigFile:
    """Read a configuration file; None means the default one, which may be missing.

    Raises ConfigError with the file and the key.
    """
    try:
        content = tomllib.loads((path or DEFAULT_CONFIG).read_text(encoding="utf-8"))
        _check(content)
    except FileNotFoundError:
        if path is None:
            return ConfigFile(DEFAULT_CONFIG, {})
        raise ConfigError(f"cannot read the configuration {path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path or DEFAULT_CONFIG}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"cannot use the configuration {path or DEFAULT_CONFIG}: {error}"
        ) from error
    users = content.pop("users", None)
    return ConfigFile(path or DEFAULT_CONFIG, content, users)


def _check(content: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that there is not, and a value of the wrong kind."""
    for key, value in content.items():
        if key not in SETTINGS:
            meant = get_close_matches(key, SETTINGS, 1)
            known = f"did you mean {meant[0]}?" if meant else f"there are: {', '.join(SETTINGS)}"
            raise ValueError(f"there is no setting {key!r}; {known}")
        if key == "users":
            _check_users(value)
        elif key in _QUANTITIES and type(value) is int:
            continue  # As what is written bare on a command line.
        elif not isinstance(value, str) or not value:
            kinds = "a whole number or a string" if key in _QUANTITIES else "a string"
            raise ValueError(f"{key} must be {kinds} that is not empty")


def _check_users(users: object) -> None:
    if not isinstance(users, dict):
        raise ValueError("users must be a table, [users]")  # noqa: TRY004 - of what was written
    for user, roles in users.items():
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise ValueError(f'users: {user} must have a list of roles, such as ["query"]')
