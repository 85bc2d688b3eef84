"""What comes from Debian: programs that are installed, and packages that are only unpacked."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from guest.failure import CannotRun

PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "depmod": "kmod",
    "modprobe": "kmod",
    "setpriv": "util-linux",
    "dpkg-deb": "dpkg",
}
"""Program → the package that has it."""

_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def find(name: str) -> str | None:
    """Return the path of a program of the host, None if it is missing."""
    return shutil.which(name, path=_PATH)


def program(name: str) -> str:
    """Return the path of a program of the host. Raises CannotRun if it is missing."""
    path = find(name)
    if path is None:
        raise CannotRun(f"there is no {name}")
    return path


def install_programs() -> None:
    """Install what is missing of PROGRAMS; raise CannotRun if that cannot be done."""
    if platform.machine() != "x86_64":
        raise CannotRun(f"it needs an x86-64 host; this is {platform.machine()}")
    missing = {package for name, package in PROGRAMS.items() if not find(name)}
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(missing)]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotRun(f"packages are missing. As root: {' '.join(command)}")
    print(f"guest: installing {', '.join(sorted(missing))}", file=sys.stderr)
    _apt(command)


def dependency(package: str) -> str:
    """Return the one package that a metapackage stands for. Raises CannotRun."""
    for line in _apt(["apt-cache", "depends", package]).splitlines():
        relation, _, name = line.strip().partition(": ")
        if relation == "Depends":
            return name
    raise CannotRun(f"the package {package} depends on nothing; is this Debian?")


def unpack(package: str, directory: Path) -> None:
    """Fetch a package and unpack it, without installing it. Raises CannotRun."""
    print(f"guest: fetching {package}", file=sys.stderr)
    with TemporaryDirectory(dir=directory.parent) as scratch:
        _apt(["apt-get", "download", package], Path(scratch))
        (archive,) = Path(scratch).glob("*.deb")
        subprocess.run([program("dpkg-deb"), "-x", archive, directory], check=True)


def _apt(command: list[str], directory: Path | None = None) -> str:
    """Run a command of apt; if it fails, refresh the lists of packages and try once more."""
    if shutil.which(command[0]) is None:
        raise CannotRun(f"it needs a Debian system: there is no {command[0]}")
    attempt = _run(command, directory)
    if attempt.returncode != 0 and os.geteuid() == 0:
        _run(["apt-get", "update"], None)
        attempt = _run(command, directory)
    if attempt.returncode != 0:
        raise CannotRun(f"{' '.join(command)} failed: {attempt.stderr.strip()}")
    return attempt.stdout


def _run(command: list[str], directory: Path | None) -> subprocess.CompletedProcess[str]:
    # APT's own user could not write into a directory of ours.
    options = ["-qq", "-o", "APT::Sandbox::User=root", "-o", "DPkg::Lock::Timeout=300"]
    return subprocess.run(
        [command[0], *(options if command[0] == "apt-get" else []), *command[1:]],
        cwd=directory,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
