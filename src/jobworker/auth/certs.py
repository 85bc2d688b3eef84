"""A development CA in a directory: keeps what is there and valid, issues what is missing.

What to write is decided by `_plan`, which does no I/O; `_issue` reads and writes the files.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from jobworker.auth import checks, issue
from jobworker.auth.checks import Purpose
from jobworker.auth.directory import Directory
from jobworker.auth.files import PemFile
from jobworker.auth.identity import COMMON_NAME, COMMON_NAME_RULE
from jobworker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jobworker.auth.checks import PrivateKey

SERVER: Final = "jobworker"
CLIENTS: Final = ("user_alpha", "user_bravo")

_CA = "ca"
_KINDS = ("crt", "key")
_MODES = {"crt": 0o644, "key": 0o600}
_CA_COMMON_NAME = "jobworker development CA"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has done, file by file."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def init(
    directory: Path, *, names: Sequence[str] = (), force: bool = False, now: datetime | None = None
) -> Outcome:
    """Make sure that `directory` holds a CA and certificates for the server and two clients.

    They are ``ca``, ``jobworker``, ``user_alpha`` and ``user_bravo``, each a ``.crt`` and a
    ``.key``. The server's certificate is for localhost, this host's name and `names` (DNS names or
    IP addresses). What is there and valid is kept; what is missing is issued by the CA that is
    there. `force` issues all of it anew, with new keys; the CA only if it cannot be used, because
    a new one makes every certificate of the old one worthless.

    Raises ConfigError, and has written nothing, if something that is there is not valid (and
    `force` is not set), if the CA's key is needed and missing, or for a name that cannot be one.
    """
    own_name = [name for name in [socket.gethostname()] if _DNS_NAME.fullmatch(name)]
    required = [_subject(name) for name in names]
    usual = [_subject(name) for name in (*_LOCAL_NAMES, *own_name)]
    server = _Leaf(SERVER, Purpose.SERVER, tuple(required), tuple(usual))
    clients = [_Leaf(name, Purpose.CLIENT) for name in CLIENTS]
    return _issue(directory, [server, *clients], create=True, force=force, now=now)


def issue_client(
    directory: Path, common_name: str, *, force: bool = False, now: datetime | None = None
) -> Outcome:
    """Make sure that `directory` holds a certificate for one more user, issued by the CA there.

    What is there and valid is kept, unless `force` is set. Raises ConfigError as `init` does, for
    a name that no user can have, and if there is no CA.
    """
    if not COMMON_NAME.fullmatch(common_name) or common_name in {_CA, SERVER}:
        raise ConfigError(
            f"{common_name!a} cannot be a user's name: {COMMON_NAME_RULE}, and neither {_CA!r} nor "
            f"{SERVER!r}"
        )
    leaf = _Leaf(common_name, Purpose.CLIENT)
    return _issue(directory, [leaf], create=False, force=force, now=now)


class _Leaf(NamedTuple):
    """A certificate that should be there."""

    name: str
    purpose: Purpose
    required: tuple[x509.GeneralName, ...] = ()
    """Subject Alternative Names that it must have."""
    usual: tuple[x509.GeneralName, ...] = ()
    """Those that it gets besides when it is issued."""

    @property
    def subjects(self) -> list[x509.GeneralName]:
        return list(dict.fromkeys((*self.usual, *self.required)))


class _Pair(NamedTuple):
    """The two files of a name; either may be missing."""

    certificate: PemFile | None
    key: PemFile | None


class _Found(NamedTuple):
    """What a directory holds, of the names that matter."""

    path: Path
    contents: Mapping[str, bytes]

    def pair(self, name: str) -> _Pair:
        return _Pair(self._file(f"{name}.crt"), self._file(f"{name}.key"))

    def _file(self, name: str) -> PemFile | None:
        data = self.contents.get(name)
        return None if data is None else PemFile(self.path / name, data)


class _Authority(NamedTuple):
    """The CA to issue with; without its key it can only tell what it has issued."""

    certificate: x509.Certificate
    key: PrivateKey | None
    new: bool = False
    """Whether its certificate is made by this run."""


def _issue(
    path: Path, leaves: Sequence[_Leaf], *, create: bool, force: bool, now: datetime | None
) -> Outcome:
    names = [_CA, *(leaf.name for leaf in leaves)]
    now = now or datetime.now(UTC)
    try:
        with Directory.locked(path, create=create) as directory:
            found = _Found(path, directory.read([f"{n}.{kind}" for n in names for kind in _KINDS]))
            written = _plan(found, leaves, create=create, force=force, now=now)
            for name, data in written.items():
                directory.write(name, data, mode=_MODES[name.rpartition(".")[2]])
    except OSError as error:
        raise ConfigError(f"cannot keep certificates in {path}: {error.strerror}") from error
    return Outcome(
        written=tuple(path / name for name in written),
        kept=tuple(path / name for name in found.contents if name not in written),
    )


def _plan(
    found: _Found, leaves: Sequence[_Leaf], *, create: bool, force: bool, now: datetime
) -> dict[str, bytes]:
    """Decide which files to write, in this order, so that `leaves` are there and valid.

    A key comes before its certificate: after an interruption the next run takes it from there.
    """
    authority, files = _authority(found, create=create, force=force, now=now)
    problems = []
    for leaf in leaves:
        try:
            files |= _leaf_files(found.pair(leaf.name), leaf, authority, force=force, now=now)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{found.path} is left as it is: " + "; ".join(problems))
    return files


def _authority(
    found: _Found, *, create: bool, force: bool, now: datetime
) -> tuple[_Authority, dict[str, bytes]]:
    pair = found.pair(_CA)
    if pair.certificate is None and not create:
        raise ConfigError(
            f"{found.path} has no {_CA}.crt: `jobworker certs init {found.path}` makes a CA"
        )
    try:
        return _existing_authority(pair, now)
    except ConfigError as error:
        if not (create and force):
            raise ConfigError(f"cannot use the CA in {found.path}: {error}") from error
        return _new_authority(issue.new_key(), now)


def _existing_authority(pair: _Pair, now: datetime) -> tuple[_Authority, dict[str, bytes]]:
    if pair.certificate is None:
        if pair.key is None:
            return _new_authority(issue.new_key(), now)
        authority, files = _new_authority(checks.private_key(pair.key), now)
        return authority, {name: data for name, data in files.items() if name != f"{_CA}.key"}
    certificate = checks.authorities(pair.certificate, now=now)[0]
    key = pair.key and checks.belongs(pair.key, certificate, pair.certificate.path)
    return _Authority(certificate, key), {}


def _new_authority(key: PrivateKey, now: datetime) -> tuple[_Authority, dict[str, bytes]]:
    made = issue.authority(_CA_COMMON_NAME, key, now)
    return _Authority(made.certificate, key, new=True), {
        f"{_CA}.key": issue.key_pem(key),
        f"{_CA}.crt": issue.certificate_pem(made.certificate),
    }


def _leaf_files(
    pair: _Pair, leaf: _Leaf, authority: _Authority, *, force: bool, now: datetime
) -> dict[str, bytes]:
    key = None
    if not force:
        if pair.certificate is not None:
            try:
                _check_kept(pair.certificate, pair.key, leaf, authority, now)
            except ConfigError as error:
                raise ConfigError(f"{error} (--force issues a new one)") from error
            return {}
        key = pair.key and checks.private_key(pair.key)
    if authority.key is None:
        raise ConfigError(f"{leaf.name}.crt cannot be issued without the CA's key, {_CA}.key")
    files = {}
    if key is None:
        key = issue.new_key()
        files[f"{leaf.name}.key"] = issue.key_pem(key)
    issuer = issue.Authority(authority.certificate, authority.key)
    made = issue.certificate(
        issuer, leaf.name, key, purpose=leaf.purpose, subjects=leaf.subjects, now=now
    )
    files[f"{leaf.name}.crt"] = issue.certificate_pem(made)
    return files


def _check_kept(
    certificate: PemFile, key: PemFile | None, leaf: _Leaf, authority: _Authority, now: datetime
) -> None:
    if key is None:
        raise ConfigError(f"{certificate.path} is there without its key")
    parsed = checks.pair(certificate, key, leaf.purpose, now=now)
    if not checks.issued_by(parsed, [authority.certificate]):
        if authority.new:
            raise ConfigError(f"{certificate.path} was issued by a CA whose {_CA}.crt is missing")
        raise ConfigError(f"{certificate.path} was not issued by the CA beside it")
    _check_names(parsed, certificate.path, leaf)


def _check_names(certificate: x509.Certificate, path: Path, leaf: _Leaf) -> None:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in names] != [leaf.name]:
        raise ConfigError(f"{path} is not for the Common Name {leaf.name}")
    try:
        present = list(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except x509.ExtensionNotFound:
        present = []
    missing = [str(name.value) for name in leaf.required if name not in present]
    if missing:
        raise ConfigError(f"{path} is not for {', '.join(missing)}")


def _subject(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    if not _DNS_NAME.fullmatch(name):
        raise ConfigError(f"{name!a} is neither a DNS name nor an IP address")
    return x509.DNSName(name)
