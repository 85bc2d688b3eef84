"""What `jobworker check` finds out: whether jobs could run on this host, and under which limits.

It only looks: nothing is mounted, created or written.
"""

from __future__ import annotations

import enum
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from jobworker import cgroups
from jobworker.auth import checks
from jobworker.auth.files import CredentialFiles
from jobworker.cgroups.limits import TABLE
from jobworker.cgroups.mounts import Mounts
from jobworker.errors import JobWorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OLDEST_KERNEL: Final = (5, 7)
_FULL_KERNEL: Final = (5, 14)
_SOON_DAYS: Final = 30
_LITTLE_SPACE: Final = 256 * 1024 * 1024


class Verdict(enum.Enum):
    """What a finding means."""

    OK = "ok"
    NOTE = "note"
    """Jobs run, but something that could be had is not there."""
    FAILED = "failed"
    """Jobs could not run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `detail` says what was found, and a remedy if need be."""

    section: str
    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether jobs could run."""
        return all(finding.verdict is not Verdict.FAILED for finding in self.findings)


def look(
    *,
    cgroup_root: Path,
    cert: Path,
    key: Path,
    ca: Path,
    log_dir: Path,
    state_dir: Path,
    run_dir: Path,
) -> Report:
    """Look at everything a server with these settings needs."""
    return Report(
        (
            *_kernel(),
            *_cgroups(cgroup_root),
            *_certificates(CredentialFiles(cert, key, ca)),
            *_directories({"log": log_dir, "state": state_dir, "run": run_dir}),
        )
    )


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if version >= _FULL_KERNEL:
        verdict, detail = Verdict.OK, f"Linux {release}"
    elif version >= _OLDEST_KERNEL:
        verdict = Verdict.NOTE
        detail = f"Linux {release}: before 5.14 jobs are killed process by process"
    else:
        verdict, detail = Verdict.FAILED, f"Linux {release}; 5.7 or later is needed"
    yield Finding("kernel", "release", verdict, detail)
    root = os.geteuid() == 0
    yield Finding(
        "kernel",
        "user",
        Verdict.OK if root else Verdict.NOTE,
        "root" if root else f"uid {os.geteuid()}: jobs can only run as this user",
    )


def _cgroups(root: Path) -> Iterator[Finding]:
    verdict, detail = _hierarchy(root)
    yield Finding("cgroups", "hierarchy", verdict, detail)
    limits = _limits_by_controller()
    for name, controller in cgroups.Service(root).controllers().items():
        if controller.available:
            yield Finding("cgroups", name, Verdict.OK, f"limits: {', '.join(limits[name])}")
        else:
            detail = f"{controller.reason} (without it, no {', '.join(limits[name])})"
            yield Finding("cgroups", name, Verdict.NOTE, detail)


def _hierarchy(root: Path) -> tuple[Verdict, str]:
    mounts = Mounts()
    if mounts.is_cgroup2(str(root)):
        if os.access(root, os.W_OK):
            return Verdict.OK, f"{root} is a cgroup v2 hierarchy"
        return Verdict.FAILED, f"{root} may not be written to; run as root"
    if not (mounts.is_missing(str(root)) or mounts.is_empty_directory(str(root))):
        return Verdict.FAILED, f"{root} is neither cgroup v2 nor empty; name another --cgroup-root"
    if os.geteuid() != 0:
        return Verdict.FAILED, f"nothing is mounted at {root}, and only root can mount cgroup2"
    return Verdict.OK, f"the server will mount cgroup2 at {root}"


def _limits_by_controller() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in TABLE:
        limits = found.setdefault(row.controller, [])
        if row.limit not in limits:
            limits.append(row.limit)
    return found


def _certificates(files: CredentialFiles) -> Iterator[Finding]:
    try:
        pems = files.read()
        warnings = checks.check(pems, checks.Purpose.SERVER)
        ends = checks.certificates(pems.certificate)[0].not_valid_after_utc
    except JobWorkerError as error:
        yield Finding("certificates", "server", Verdict.FAILED, str(error))
        return
    for warning in (*pems.warnings, *warnings):
        yield Finding("certificates", "server", Verdict.NOTE, warning)
    days = (ends - datetime.now(UTC)).days
    yield Finding(
        "certificates",
        "server",
        Verdict.OK if days > _SOON_DAYS else Verdict.NOTE,
        f"{files.certificate} is valid until {ends:%Y-%m-%d} ({days} days)",
    )


def _directories(directories: dict[str, Path]) -> Iterator[Finding]:
    for name, directory in directories.items():
        there = next(path for path in (directory, *directory.parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("directories", name, Verdict.FAILED, f"{there} may not be written to")
            continue
        free = shutil.disk_usage(there).free
        made = "" if there == directory else " will be created;"
        yield Finding(
            "directories",
            name,
            Verdict.OK if free > _LITTLE_SPACE else Verdict.NOTE,
            f"{directory}{made} {free / 2**30:.1f} GiB free",
        )


def as_text(report: Report) -> str:
    """Write the findings for people, with a closing line that says what they come to."""
    lines = []
    section = ""
    for finding in report.findings:
        if finding.section != section:
            section = finding.section
            lines.append(f"{section}:")
        lines.append(f"  {finding.verdict.value:<6}  {finding.name:<9}  {finding.detail}")
    lines.append("jobs can run here" if report.usable else "jobs cannot run here, see: failed")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Write the findings as JSON."""
    content = {"usable": report.usable, "findings": [asdict(f) for f in report.findings]}
    return msgspec.json.format(msgspec.json.encode(content)).decode()
