"""`jobworker certs` as people type it."""

import os

import pytest
from cryptography import x509

from tests.support.processes import jobworker

FILES = [
    f"{name}.{kind}"
    for name in ("ca", "jobworker", "user_alpha", "user_bravo")
    for kind in ("crt", "key")
]


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".lock"}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "certs"


@pytest.fixture
def init(directory):
    def run(*options):
        done = jobworker("certs", "init", *options, directory)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def subjects(directory):
    certificate = x509.load_pem_x509_certificate((directory / "jobworker.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return {*names.get_values_for_type(x509.DNSName), *addresses}


def test_init_writes_a_set_with_keys_that_only_the_owner_reads(init, directory):
    assert sorted(init()) == sorted(f"wrote {directory / name}" for name in FILES)
    assert set(content(directory)) >= set(FILES)
    for name in FILES:
        expected = 0o600 if name.endswith(".key") else 0o644
        assert (directory / name).stat().st_mode & 0o777 == expected


def test_init_again_keeps_everything(init, directory):
    init()
    before = content(directory)
    assert sorted(init()) == sorted(f"kept  {directory / name}" for name in FILES)
    assert content(directory) == before


def test_init_adds_the_names_of_the_server(init, directory):
    init("--name", "lab.example.org", "--name", "192.0.2.7")
    assert {"localhost", "127.0.0.1", "lab.example.org", "192.0.2.7"} <= subjects(directory)


def test_init_refuses_what_is_not_a_name(directory):
    done = jobworker("certs", "init", "--name", "not a name", directory)
    assert done.returncode == 1
    assert done.stderr.startswith("jobworker: ")
    assert "not a name" in done.stderr
    assert not directory.exists() or content(directory) == {}


def test_init_with_force_makes_new_certificates_of_the_same_authority(init, directory):
    init()
    before = content(directory)
    said = init("--force", "--name", "lab.example.org")
    after = content(directory)
    assert {name for name in FILES if after[name] == before[name]} == {"ca.crt", "ca.key"}
    assert sorted(line for line in said if line.startswith("kept")) == [
        f"kept  {directory / 'ca.crt'}",
        f"kept  {directory / 'ca.key'}",
    ]
    assert "lab.example.org" in subjects(directory)


def test_user_makes_a_certificate_for_one_more_user_and_keeps_it(init, directory):
    init()
    names = [directory / "carol.crt", directory / "carol.key"]
    made = jobworker("certs", "user", "carol", directory)
    assert (made.returncode, made.stderr) == (0, "")
    assert sorted(made.stdout.splitlines())[-2:] == [f"wrote {name}" for name in names]
    before = content(directory)
    assert jobworker("certs", "user", "carol", directory).returncode == 0
    assert content(directory) == before


def test_user_with_force_gets_a_new_certificate(init, directory):
    init()
    assert jobworker("certs", "user", "carol", directory).returncode == 0
    before = content(directory)
    assert jobworker("certs", "user", "--force", "carol", directory).returncode == 0
    after = content(directory)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"carol.crt", "carol.key"}


@pytest.mark.parametrize("name", ["../carol", "ca", "jobworker", ""])
def test_user_refuses_what_cannot_be_a_user(init, directory, name):
    init()
    before = content(directory)
    done = jobworker("certs", "user", name, directory)
    assert done.returncode == 1
    assert "cannot be a user's name: 1 to 64 letters" in done.stderr
    assert content(directory) == before


def test_user_without_an_authority_says_how_to_get_one(directory):
    done = jobworker("certs", "user", "carol", directory)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "jobworker certs init" in done.stderr or os.fspath(directory) in done.stderr
