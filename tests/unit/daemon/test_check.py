from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobworker.auth import certs
from jobworker.auth.files import CredentialFiles
from jobworker.cgroups import Controller
from jobworker.cgroups.limits import TABLE
from jobworker.daemon import check
from jobworker.daemon.check import Finding, Report, Verdict

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
MIB = 1024**2


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("5.6.19", Verdict.FAILED),
        ("5.7.0-rc1", Verdict.NOTE),
        ("5.13.0-52-generic", Verdict.NOTE),
        ("5.14.0", Verdict.OK),
        ("6.1", Verdict.OK),
        ("10.0.1-amd64", Verdict.OK),
    ],
)
def test_a_kernel_is_judged_by_its_release(release, verdict):
    finding = check.kernel(release)
    assert finding.verdict is verdict
    assert f"Linux {release}" in finding.detail


@pytest.mark.parametrize(("uid", "verdict"), [(0, Verdict.OK), (1000, Verdict.NOTE)])
def test_a_user_that_is_not_root_is_no_obstacle(uid, verdict):
    assert check.user(uid).verdict is verdict


def test_every_limit_is_named_whether_its_controller_is_there_or_not():
    names = {row.controller for row in TABLE}
    for available in (True, False):
        reason = "" if available else "it is bound elsewhere"
        found = {n: Controller(n, available, "", reason) for n in names}
        findings = list(check.controllers(found))
        assert {f.verdict for f in findings} == {Verdict.OK if available else Verdict.NOTE}
        assert all(reason in finding.detail for finding in findings)
        for row in TABLE:
            (finding,) = [f for f in findings if f.name == row.controller]
            assert f"--{row.limit.replace('_', '-')}" in finding.detail


@pytest.mark.parametrize("available", [True, False])
def test_weights_without_effect_are_noted_beside_io_where_its_controller_is_there(available):
    found = {n: Controller(n, available, "", "…") for n in ("io", "pids")}
    names = [f.name for f in check.controllers(found, "has no effect: no disk heeds it")]
    assert names == (["io", "io.weight", "pids"] if available else ["io", "pids"])


def test_what_is_bound_to_cgroup_v1_has_one_remedy():
    names = sorted({row.controller for row in TABLE})
    found = {n: Controller(n, available=False, bound_at=f"/v1/{n}", reason="…") for n in names}
    *each, remedy = check.controllers(found)
    assert "cgroup_no_v1=all" in remedy.detail
    for name, finding in zip(names, each, strict=True):
        assert finding.detail.startswith(f"bound to cgroup v1 at /v1/{name}. Without it there is")


def test_a_controller_that_is_bound_alone_keeps_its_own_remedy():
    found = {"cpu": Controller("cpu", available=False, bound_at="/v1", reason="boot with x")}
    (finding,) = check.controllers(found)
    assert finding.detail.startswith("boot with x. ")


def test_an_address_is_free_in_use_or_not_of_this_host():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert check.address("localhost", port).verdict is Verdict.NOTE
    assert check.address("localhost", port).verdict is Verdict.OK
    assert check.address("192.0.2.1", port).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("days", "verdict"),
    [(365, Verdict.OK), (31, Verdict.OK), (30, Verdict.NOTE), (0, Verdict.NOTE)],
)
def test_a_certificate_that_ends_soon_is_noted(days, verdict):
    finding = check.validity("server", Path("x.crt"), NOW + days * DAY, NOW)
    assert finding.verdict is verdict
    assert f"x.crt is valid until {NOW + days * DAY:%Y-%m-%d} ({days} days)" in finding.detail


@pytest.mark.parametrize(
    ("free", "verdict", "said"),
    [
        (0, Verdict.FAILED, "0 MiB"),
        (1 * MIB, Verdict.NOTE, "1 MiB"),
        (256 * MIB, Verdict.NOTE, "256 MiB"),
        (1536 * MIB, Verdict.OK, "1.5 GiB"),
    ],
)
def test_a_directory_needs_room(free, verdict, said):
    finding = check.room("log", "/log", free)
    assert (finding.verdict, finding.detail) == (verdict, f"/log: {said} free")


@pytest.fixture
def files(tmp_path):
    certs.init(tmp_path)
    return CredentialFiles(
        tmp_path / "jobworker.crt", tmp_path / "jobworker.key", tmp_path / "ca.crt"
    )


def test_good_certificates_are_two_findings(files):
    found = list(check.certificates(files, NOW))
    assert [(f.name, f.verdict) for f in found] == [
        ("server", Verdict.OK),
        ("authority", Verdict.OK),
    ]


def test_an_open_key_is_noted_once(files):
    files.key.chmod(0o644)
    notes = [f for f in check.certificates(files, NOW) if f.verdict is Verdict.NOTE]
    assert len(notes) == 1
    assert f"{files.key} is open to every user" in notes[0].detail


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files.certificate.unlink(), "no such file"),
        (lambda files: files.key.write_text(""), "is not a private key"),
        (lambda files: files.ca.write_bytes(files.key.read_bytes()), "holds a private key"),
    ],
)
def test_certificates_that_cannot_be_used_are_one_failure(files, spoil, said):
    spoil(files)
    (finding,) = check.certificates(files, NOW)
    assert finding.verdict is Verdict.FAILED
    assert said in finding.detail


def test_expired_certificates_are_a_failure(files):
    (finding,) = check.certificates(files, NOW + 10_000 * DAY)
    assert finding.verdict is Verdict.FAILED
    assert "expired on" in finding.detail


FOUND = (
    Finding("kernel", "release", Verdict.OK, "Linux 6"),
    Finding("kernel", "user", Verdict.NOTE, "uid 1"),
    Finding("directories", "log", Verdict.FAILED, "full"),
)


def test_findings_stand_under_their_sections_and_come_to_something():
    assert check.as_text(Report(FOUND)).splitlines() == [
        "kernel:",
        "  ok      release    Linux 6",
        "  note    user       uid 1",
        "directories:",
        "  failed  log        full",
        "jobs cannot run here; see what failed",
    ]
    assert check.as_text(Report(FOUND[:2])).splitlines()[-1] == "jobs can run here"


def test_findings_fit_the_width_and_break_no_word():
    long = Finding("cgroups", "memory", Verdict.NOTE, "without it there is no --memory-max, " * 5)
    lines = check.as_text(Report((long,)), 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert all(line.startswith(" " * 21) for line in lines[2:-1])
    assert not [line for line in lines if line.endswith("-")]


def test_findings_as_json():
    assert json.loads(check.as_json(Report(FOUND[1:]))) == {
        "usable": False,
        "findings": [
            {"section": "kernel", "name": "user", "verdict": "note", "detail": "uid 1"},
            {"section": "directories", "name": "log", "verdict": "failed", "detail": "full"},
        ],
    }
    assert json.loads(check.as_json(Report(FOUND[:2])))["usable"] is True
