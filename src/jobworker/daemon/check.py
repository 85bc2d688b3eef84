"""What `jobworker check` finds out: whether jobs could run on this host, and under which limits.

It only looks: nothing is mounted, created or written.
"""

from __future__ import annotations

import enum
import os
import platform
import textwrap
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from jobworker import cgroups
from jobworker.auth import checks
from jobworker.auth.files import CredentialFiles
from jobworker.cgroups.limits import TABLE
from jobworker.daemon.listen import AddressInUse, client_address, free_port
from jobworker.errors import CgroupUnavailable, ConfigError
from jobworker.job.service import DEFAULT_CGROUP_ROOT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

_OLDEST_KERNEL: Final = (5, 7)
_FULL_KERNEL: Final = (5, 14)
_SOON_DAYS: Final = 30
_FIGURES: Final = {"memory": "memory", "io": "I/O", "pids": "the number of processes"}
"""What a job uses of, which only a controller counts; cpu.stat is there without one."""
_NARROWEST: Final = 20
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
    host: str,
    port: int,
    cgroup_root: Path | None,
    cert: Path,
    key: Path,
    ca: Path,
    log_dir: Path,
    state_dir: Path,
    run_dir: Path,
    audit_log: Path,
) -> Report:
    """Look at everything a server with these settings needs."""
    directories = {"log": log_dir, "state": state_dir, "run": run_dir}
    return Report(
        (
            kernel(platform.release()),
            user(os.geteuid()),
            *_cgroups(cgroup_root),
            *certificates(CredentialFiles(cert, key, ca), datetime.now(UTC)),
            *(_directory(name, path.absolute()) for name, path in directories.items()),
            *_audit_log(audit_log.absolute(), {path.absolute() for path in directories.values()}),
            address(host, port),
        )
    )


def kernel(release: str) -> Finding:
    """Judge a kernel by its release (uname(2))."""
    parts = release.partition("-")[0].split(".")[:2]
    version = tuple(int(part) for part in parts if part.isdigit())
    if version >= _FULL_KERNEL:
        verdict, detail = Verdict.OK, f"Linux {release}"
    elif version >= _OLDEST_KERNEL:
        verdict = Verdict.NOTE
        detail = f"Linux {release}: before 5.14 jobs are killed process by process"
    else:
        verdict, detail = Verdict.FAILED, f"Linux {release}; 5.7 or later is needed"
    return Finding("kernel", "release", verdict, detail)


def user(uid: int) -> Finding:
    """Judge the user that the server would run as."""
    if uid == 0:
        return Finding("kernel", "user", Verdict.OK, "root")
    return Finding("kernel", "user", Verdict.NOTE, f"uid {uid}: jobs can only run as this user")


def _cgroups(given: Path | None) -> Iterator[Finding]:
    try:
        root = cgroups.choose_root(given, default=DEFAULT_CGROUP_ROOT)
    except CgroupUnavailable as error:
        yield Finding("cgroups", "root", Verdict.FAILED, str(error))
        return
    yield Finding("cgroups", "root", Verdict.OK, f"{root.path}: {root.reason}")
    service = cgroups.Service(root.path.absolute())
    try:
        yield Finding("cgroups", "hierarchy", Verdict.OK, service.check_setup())
    except CgroupUnavailable as error:
        yield Finding("cgroups", "hierarchy", Verdict.FAILED, str(error))
    try:
        found = service.controllers()
    except OSError as error:
        yield Finding("cgroups", "limits", Verdict.NOTE, f"cannot look at controllers: {error}")
    else:
        yield from controllers(found, service.weights_obstacle())


def controllers(
    found: Mapping[str, cgroups.Controller], weights_obstacle: str = ""
) -> Iterator[Finding]:
    """Say of each controller which limits it makes possible; without one, jobs run unlimited.

    `weights_obstacle` is why --io-weight has no effect although its controller is there.
    """
    flags = _flags_by_controller()
    bound = [controller for controller in found.values() if controller.bound_at]
    for name, controller in found.items():
        what = ", ".join(flags[name])
        if controller.available:
            yield Finding("cgroups", name, Verdict.OK, what)
            if name == "io" and weights_obstacle:
                detail = f"--io-weight {weights_obstacle}"
                yield Finding("cgroups", "io.weight", Verdict.NOTE, detail)
            continue
        reason = controller.reason
        if len(bound) > 1 and controller in bound:
            reason = f"bound to cgroup v1 at {controller.bound_at}"
        figures = f", and no figures for {_FIGURES[name]}" if name in _FIGURES else ""
        detail = f"{reason}. Without it there is no {what}{figures}"
        yield Finding("cgroups", name, Verdict.NOTE, detail)
    if len(bound) > 1:
        detail = (
            "what is bound to cgroup v1 becomes free when the machine boots with "
            "cgroup_no_v1=all (or systemd.unified_cgroup_hierarchy=1)"
        )
        yield Finding("cgroups", "remedy", Verdict.NOTE, detail)


def _flags_by_controller() -> dict[str, list[str]]:
    """Return the flags of `jobworker-cli start` that need a controller, by its name."""
    found: dict[str, list[str]] = {}
    for row in TABLE:
        flags = found.setdefault(row.controller, [])
        flag = f"--{row.limit.replace('_', '-')}"
        if flag not in flags:
            flags.append(flag)
    return found


def certificates(files: CredentialFiles, now: datetime) -> Iterator[Finding]:
    """Read and judge what TLS needs."""
    try:
        pems = files.read()
        warnings = checks.check(pems, checks.Purpose.SERVER, now=now)
        server = checks.certificates(pems.certificate)[0]
        authorities = checks.authorities(pems.ca, now=now)
    except ConfigError as error:
        yield Finding("certificates", "server", Verdict.FAILED, str(error))
        return
    for warning in warnings:
        yield Finding("certificates", "server", Verdict.NOTE, warning)
    yield validity("server", files.certificate, server.not_valid_after_utc, now)
    # Of several authorities one is enough.
    last = max(authority.not_valid_after_utc for authority in authorities)
    yield validity("authority", files.ca, last, now)


def validity(name: str, path: Path, ends: datetime, now: datetime) -> Finding:
    """Say how long a certificate that is valid `now` goes on to be."""
    days = (ends - now).days
    verdict = Verdict.OK if days > _SOON_DAYS else Verdict.NOTE
    detail = f"{path} is valid until {ends:%Y-%m-%d} ({days} days)"
    return Finding("certificates", name, verdict, detail)


def _directory(name: str, directory: Path) -> Finding:
    # os.path.exists takes a directory that may not be looked into for one that is not there.
    there = next(path for path in (directory, *directory.parents) if os.path.exists(path))  # noqa: PTH110
    try:
        state = os.statvfs(there)
    except OSError as error:
        return Finding("directories", name, Verdict.FAILED, f"{there}: {error.strerror}")
    obstacle = ""
    if not there.is_dir():
        obstacle = f"{there} is not a directory"
    elif state.f_flag & os.ST_RDONLY:
        obstacle = f"{there} is on a file system that is read-only"
    elif not os.access(there, os.W_OK | os.X_OK):
        obstacle = f"{there} may not be written to"
    elif state.f_files and not state.f_favail:
        obstacle = f"{there} is on a file system that takes no more files"
    if obstacle:
        return Finding("directories", name, Verdict.FAILED, f"cannot use {directory}: {obstacle}")
    free = state.f_bavail * state.f_frsize
    return room(name, f"{directory}{'' if there == directory else ' (will be created)'}", free)


def _audit_log(path: Path, looked_at: Collection[Path]) -> Iterator[Finding]:
    """Look at the audit log, and at its directory unless that is one of those `looked_at`."""
    name = "audit log"
    if os.path.lexists(path) and not (path.is_file() and os.access(path, os.W_OK)):
        why = "it may not be written to" if path.is_file() else "it is not a file"
        yield Finding("directories", name, Verdict.FAILED, f"cannot use {path}: {why}")
    elif path.parent not in looked_at:
        yield _directory(name, path.parent)


def room(name: str, what: str, free: int) -> Finding:
    """Judge how many bytes a directory's file system has `free`."""
    verdict = Verdict.OK if free > _LITTLE_SPACE else Verdict.NOTE if free else Verdict.FAILED
    said = f"{free / 2**30:.1f} GiB" if free > _LITTLE_SPACE else f"{free / 2**20:.0f} MiB"
    return Finding("directories", name, verdict, f"{what}: {said} free")


def address(host: str, port: int) -> Finding:
    """Say whether a server could listen."""
    where = client_address(host, port)
    try:
        free_port(host, port)
    except AddressInUse:
        detail = f"{where} is in use, by a server that runs already or by another program"
        return Finding("network", "listen", Verdict.NOTE, detail)
    except ConfigError as error:
        return Finding("network", "listen", Verdict.FAILED, str(error))
    return Finding("network", "listen", Verdict.OK, f"{where} is free")


def as_text(report: Report, width: int | None = None) -> str:
    """Write the findings for people, with a closing line that says what they come to.

    Lines are at most `width` columns long where a word of them allows it; None leaves them whole.
    """
    lines = []
    section = ""
    for finding in report.findings:
        if finding.section != section:
            section = finding.section
            lines.append(f"{section}:")
        start = f"  {finding.verdict.value:<6}  {finding.name:<9}  "
        lines += _fitted(start, finding.detail, width)
    lines.append("jobs can run here" if report.usable else "jobs cannot run here; see what failed")
    return "\n".join(lines)


def _fitted(start: str, text: str, width: int | None) -> list[str]:
    if width is None:
        return [start + text]
    return textwrap.wrap(
        text,
        max(width, len(start) + _NARROWEST),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_json(report: Report) -> str:
    """Write the findings as JSON."""
    content = {"usable": report.usable, "findings": [asdict(f) for f in report.findings]}
    return msgspec.json.format(msgspec.json.encode(content)).decode()
