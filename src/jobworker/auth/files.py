"""Reads the files that TLS needs: a certificate, its key, a CA. Standard library only."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jobworker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class FileMissing(ConfigError):
    """Raised when a file is not there; `problem` says that alone, `setting` is what names it."""

    def __init__(self, what: str, path: Path, setting: str) -> None:
        self.problem = f"cannot read {what} {path}: there is no such file"
        self.setting = setting
        super().__init__(
            f"{self.problem}; `jobworker certs init {path.parent}` makes a set of certificates to "
            "begin with"
        )


class PemFile(NamedTuple):
    """A file's content, and where it came from."""

    path: Path
    data: bytes


class Pems(NamedTuple):
    """What TLS needs, as read; nothing is known yet of what it holds."""

    certificate: PemFile
    key: PemFile
    ca: PemFile
    warnings: tuple[str, ...] = ()


Version = tuple[tuple[int, int, int, int] | None, ...]
"""Changes whenever one of the files does: inode, size, mtime and ctime of each."""


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """The paths of a certificate (with its chain), its private key, and the CA's certificate."""

    certificate: Path
    key: Path
    ca: Path

    def version(self) -> Version:
        """Tell the files apart from what they were: equal as long as none was written or moved."""
        return tuple(_version(path) for path in (self.certificate, self.key, self.ca))

    def read(self) -> Pems:
        """Read all three. Raises ConfigError for one that is missing or unreadable."""
        key, mode = _read(self.key, "the private key", "key")
        warnings = []
        if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
            warnings.append(
                f"the private key {self.key} is open to every user of this host (mode "
                f"{stat.S_IMODE(mode):04o}); chmod 600 it, and replace it if others were there"
            )
        return Pems(
            certificate=_read(self.certificate, "the certificate", "cert")[0],
            key=key,
            ca=_read(self.ca, "the CA's certificate", "ca")[0],
            warnings=tuple(warnings),
        )

    def regular(self) -> bool:
        """Tell whether all three can be read again: a pipe, for example, gives its content once."""
        return all(path.is_file() for path in (self.certificate, self.key, self.ca))


def _version(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path, what: str, setting: str) -> tuple[PemFile, int]:
    try:
        with path.open("rb") as file:
            return PemFile(path, file.read()), os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        raise FileMissing(what, path, setting) from None
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
