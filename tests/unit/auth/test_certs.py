"""What `certs init` makes, keeps, and refuses to touch."""

import ipaddress
import shutil
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from jobworker.auth import certs, checks, issue
from jobworker.auth.checks import Purpose
from jobworker.auth.files import CredentialFiles
from jobworker.auth.identity import Identity
from jobworker.errors import ConfigError

NAMES = ("ca", "jobworker", "user_alpha", "user_bravo")
FILES = sorted(f"{name}.{kind}" for name in NAMES for kind in ("crt", "key"))
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "certs"
    certs.init(path)
    return path


@pytest.fixture
def directory(made, tmp_path):
    """A directory of its own for each test, as `init` made it: contents, modes and times."""
    return Path(shutil.copytree(made, tmp_path / "certs"))


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names(paths) -> list[str]:
    return sorted(path.name for path in paths)


def check(directory, name: str, purpose: Purpose) -> tuple[str, ...]:
    files = CredentialFiles(
        directory / f"{name}.crt", directory / f"{name}.key", directory / "ca.crt"
    )
    return checks.check(files.read(), purpose)


def subjects(directory) -> list[object]:
    certificate = x509.load_pem_x509_certificate((directory / "jobworker.crt").read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [name.value for name in extension.value]


def test_the_first_run_writes_every_file(tmp_path):
    outcome = certs.init(tmp_path / "certs")
    assert names(outcome.written) == FILES == sorted(contents(tmp_path / "certs"))
    assert outcome.kept == ()


def test_what_is_made_can_be_used(directory):
    assert check(directory, "jobworker", Purpose.SERVER) == ()
    assert check(directory, "user_alpha", Purpose.CLIENT) == ()
    assert check(directory, "user_bravo", Purpose.CLIENT) == ()


@pytest.mark.parametrize("name", ["user_alpha", "user_bravo"])
def test_clients_are_who_their_file_says(directory, name):
    assert Identity.from_pem((directory / f"{name}.crt").read_bytes()).common_name == name


def test_keys_are_for_their_owner_alone(directory):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert {mode for name, mode in modes.items() if name.endswith(".key")} == {0o600}
    assert {mode for name, mode in modes.items() if name.endswith(".crt")} == {0o644}


def test_the_server_is_localhost_and_this_host(directory):
    loopback = [ipaddress.ip_address(address) for address in ("127.0.0.1", "::1")]
    assert {"localhost", socket.gethostname(), *loopback} == set(subjects(directory))


def test_the_server_gets_further_names(tmp_path):
    certs.init(tmp_path, names=["jobs.example.org", "*.example.net", "192.0.2.7", "2001:db8::7"])
    assert {"jobs.example.org", "*.example.net"} <= set(subjects(tmp_path))
    addresses = {ipaddress.ip_address(address) for address in ("192.0.2.7", "2001:db8::7")}
    assert addresses <= set(subjects(tmp_path))


@pytest.mark.parametrize("name", ["", "a b", "ä.example.org", "a..b", "-a", "300.1.1.1/8", "a\n"])
def test_a_name_that_no_host_can_have_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="is neither a DNS name nor an IP address"):
        certs.init(tmp_path / "certs", names=[name])
    assert not (tmp_path / "certs").exists()


def test_the_second_run_keeps_everything(directory):
    before = contents(directory)
    outcome = certs.init(directory)
    assert outcome.written == ()
    assert names(outcome.kept) == FILES
    assert contents(directory) == before


def test_what_is_missing_is_issued_by_the_same_ca(directory):
    before = contents(directory)
    for kind in ("crt", "key"):
        (directory / f"user_bravo.{kind}").unlink()
    outcome = certs.init(directory)
    assert names(outcome.written) == ["user_bravo.crt", "user_bravo.key"]
    assert check(directory, "user_bravo", Purpose.CLIENT) == ()
    assert contents(directory).items() & before.items() == {
        item for item in before.items() if "bravo" not in item[0]
    }


@pytest.mark.parametrize("name", ["ca", "user_alpha"])
def test_an_interrupted_run_is_carried_on_with_the_key_that_is_there(directory, name):
    before = contents(directory)
    (directory / f"{name}.crt").unlink()
    assert names(certs.init(directory).written) == [f"{name}.crt"]
    assert contents(directory)[f"{name}.key"] == before[f"{name}.key"]
    assert check(directory, "user_alpha", Purpose.CLIENT) == ()
    assert check(directory, "jobworker", Purpose.SERVER) == ()


def test_a_complete_set_needs_no_ca_key(directory):
    (directory / "ca.key").unlink()
    assert certs.init(directory).written == ()


def test_issuing_without_the_ca_key_is_refused(directory):
    (directory / "ca.key").unlink()
    for kind in ("crt", "key"):
        (directory / f"user_bravo.{kind}").unlink()
    with pytest.raises(ConfigError, match=r"user_bravo.crt cannot be issued without .* ca.key"):
        certs.init(directory)
    with pytest.raises(ConfigError, match=r"user_alpha.crt cannot be issued without .* ca.key"):
        certs.init(directory, force=True)


def break_files(directory, name: str) -> None:
    (directory / f"{name}.crt").write_bytes(b"nonsense")


def lose_key(directory, name: str) -> None:
    (directory / f"{name}.key").unlink()


def mix_keys(directory, name: str) -> None:
    (directory / f"{name}.key").write_bytes(issue.key_pem(issue.new_key()))


def swap_users(directory, name: str) -> None:
    for kind in ("crt", "key"):
        (directory / f"{name}.{kind}").write_bytes((directory / f"user_bravo.{kind}").read_bytes())


def use_another_ca(directory, name: str) -> None:
    other = directory.parent / "other"
    certs.init(other)
    for kind in ("crt", "key"):
        (directory / f"{name}.{kind}").write_bytes((other / f"{name}.{kind}").read_bytes())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (break_files, "is not a certificate in PEM form"),
        (lose_key, "is there without its key"),
        (mix_keys, "does not belong to"),
        (swap_users, "is not for the Common Name user_alpha"),
        (use_another_ca, "was not issued by the CA beside it"),
    ],
)
def test_what_is_not_valid_is_left_alone_and_named(directory, damage, problem):
    damage(directory, "user_alpha")
    for kind in ("crt", "key"):
        (directory / f"jobworker.{kind}").unlink()
    before = contents(directory)
    with pytest.raises(ConfigError, match=rf"is left as it is: .*user_alpha.* {problem}.*--force"):
        certs.init(directory)
    assert contents(directory) == before


def test_an_expired_certificate_is_left_alone_and_named(directory):
    later = NOW + timedelta(days=400)
    with pytest.raises(ConfigError, match=r"jobworker.crt expired .*user_bravo.crt expired"):
        certs.init(directory, now=later)


def test_a_server_certificate_without_a_name_that_is_asked_for_is_named(directory):
    with pytest.raises(ConfigError, match=r"jobworker.crt is not for jobs.example.org"):
        certs.init(directory, names=["localhost", "jobs.example.org"])


def test_force_renews_all_but_the_ca(directory):
    before = contents(directory)
    outcome = certs.init(directory, force=True)
    assert names(outcome.kept) == ["ca.crt", "ca.key"]
    assert names(outcome.written) == [name for name in FILES if not name.startswith("ca.")]
    kept = {name for name, data in contents(directory).items() if before[name] == data}
    assert kept == {"ca.crt", "ca.key"}


def test_an_expired_ca_is_left_alone_unless_forced(directory):
    later = NOW + timedelta(days=4000)
    with pytest.raises(ConfigError, match=r"cannot use the CA in .*ca.crt expired"):
        certs.init(directory, now=later)
    assert names(certs.init(directory, force=True, now=later).written) == FILES


def test_a_new_ca_does_not_go_with_old_certificates(directory):
    (directory / "ca.crt").unlink()
    (directory / "ca.key").unlink()
    before = contents(directory)
    with pytest.raises(ConfigError, match=r"was issued by a CA whose ca\.crt is missing"):
        certs.init(directory)
    assert contents(directory) == before


def test_a_place_that_is_no_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"cannot keep certificates in {tmp_path}/file: Not a"):
        certs.init(tmp_path / "file")


def test_a_further_user_is_issued_by_the_same_ca(directory):
    outcome = certs.issue_client(directory, "carol@example.org")
    assert names(outcome.written) == ["carol@example.org.crt", "carol@example.org.key"]
    assert check(directory, "carol@example.org", Purpose.CLIENT) == ()


def test_a_further_user_is_kept_unless_forced(directory):
    certs.issue_client(directory, "carol")
    assert certs.issue_client(directory, "carol").written == ()
    assert names(certs.issue_client(directory, "carol", force=True).written) == [
        "carol.crt",
        "carol.key",
    ]


@pytest.mark.parametrize("name", ["", "ca", "jobworker", "../x", "a/b", "a\0b", ".x", "x" * 65])
def test_a_name_that_no_user_can_have_is_refused(directory, name):
    before = contents(directory)
    with pytest.raises(ConfigError, match="cannot be a user's name"):
        certs.issue_client(directory, name)
    assert contents(directory) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_further_user_needs_a_ca(tmp_path, force):
    with pytest.raises(ConfigError, match=r"has no ca.crt: `jobworker certs init"):
        certs.issue_client(tmp_path, "carol", force=force)
    assert contents(tmp_path) == {}


def test_a_further_user_never_replaces_the_ca(directory):
    (directory / "ca.crt").write_bytes(b"nonsense")
    before = contents(directory)
    with pytest.raises(ConfigError, match="cannot use the CA"):
        certs.issue_client(directory, "carol", force=True)
    assert contents(directory) == before
