"""A QEMU guest on the host's files: builds it, runs it, watches it."""

from __future__ import annotations

import codecs
import os
import select
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from guest import hot, initramfs, packages
from guest.cache import CHECKOUT
from guest.failure import GuestFailed
from guest.initramfs import DIRECTORY, EXECUTABLE, Entry
from guest.outcome import Ended, Report, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest.cache import Cache

HERE: Final = Path(__file__).resolve().parent
OUTPUT: Final = "/run/guest/output"
"""Where the command in the guest leaves files for the host; $GUEST_OUTPUT."""

MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_blk", "virtio_console")
DISK_SIZE: Final = 256 * 2**20
CONSOLE_KEPT: Final = 2**20
"""Characters of the console, from its end, that are looked at when the guest has ended."""

PASSED_ON: Final = (
    *("PATH", "HOME", "SHELL", "LANG", "LC_ALL", "TERM", "COLUMNS"),
    *("PYTHONPATH", "CI", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED", "PYTEST_ADDOPTS"),
)
"""Variables that the command has from the host; everything else stays there."""

KERNEL_OPTIONS: Final = (
    "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic cgroup_no_v1=all mitigations=off "
    "random.trust_cpu=on"
)
"""loglevel=1 keeps the console to the command; a panic shows the rest (console_verbose)."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that runs one command; `accelerator` is a value of QEMU's ``-accel``."""

    cache: Cache
    accelerator: str

    def run(
        self, command: list[str], *, time_limit: float, show: Callable[[str], None] = lambda _: None
    ) -> Report:
        """Run a command; `show` gets the console's text as it comes. Raises GuestFailed.

        `time_limit` is in seconds, from the start of QEMU.
        """
        with self._prepared(command) as (directory, qemu):
            report = directory / "report"
            ended = _watch([*qemu, "-chardev", "stdio,id=console,signal=off"], time_limit, show)
            return judge(ended, report.read_bytes() if report.exists() else b"")

    def shell(self, command: list[str]) -> None:
        """Run an interactive command on this terminal. Raises GuestFailed if QEMU fails."""
        with self._prepared(command, interactive=True) as (_directory, qemu):
            # With mux, Ctrl-A X ends QEMU, and Ctrl-C goes to the guest.
            process = subprocess.Popen([*qemu, "-chardev", "stdio,id=console,mux=on,signal=off"])
            try:
                status = process.wait()
            finally:
                process.kill()
                process.wait()
            if status != 0:
                raise GuestFailed(f"QEMU ended with status {status}")

    @contextmanager
    def _prepared(
        self, command: list[str], *, interactive: bool = False
    ) -> Iterator[tuple[Path, list[str]]]:
        """Lay out the guest's own files in a directory, which is removed again."""
        with TemporaryDirectory(prefix="jobworker-guest-") as name:
            directory = Path(name)
            (directory / "initramfs").write_bytes(self._initramfs(command, interactive))
            with (directory / "disk").open("wb") as disk:
                disk.truncate(DISK_SIZE)
            yield directory, self._qemu(directory)

    def _initramfs(self, command: list[str], interactive: bool) -> bytes:
        kept = [CHECKOUT, self.cache.directory, Path(sys.prefix), Path(sys.base_prefix)]
        kept = [path for path in kept if not any(other in path.parents for other in kept)]
        modules = enumerate(self.cache.load_order(MODULES))
        return initramfs.pack(
            [
                Entry("init", (HERE / "init").read_bytes(), EXECUTABLE),
                Entry("bin/busybox", self.cache.busybox.read_bytes(), EXECUTABLE),
                Entry("guest/start", (HERE / "start").read_bytes(), EXECUTABLE),
                Entry("guest/settings", self._settings(command, interactive).encode()),
                Entry("guest/keep", "".join(f"{path}\n" for path in kept).encode()),
                *(Entry(f"guest/modules/{number:02}", module) for number, module in modules),
                Entry("hot", mode=DIRECTORY),
                *(_copy(path) for path in hot.paths(CHECKOUT)),
            ]
        )

    def _settings(self, command: list[str], interactive: bool) -> str:
        """Return what the guest's init reads, in the language of its shell."""
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables |= {"GUEST_OUTPUT": OUTPUT}
        lines = [f"export {name}={shlex.quote(text)}" for name, text in variables.items()]
        lines += [
            f"directory={shlex.quote(str(CHECKOUT))}",
            f"modules={shlex.quote(str(self.cache.modules))}",
            f"interactive={'yes' if interactive else ''}",
            f"set -- {shlex.join(command)}",
        ]
        return "\n".join(lines) + "\n"

    def _qemu(self, directory: Path) -> list[str]:
        """Return the command line, without the character device `console`."""
        # QEMU must not outlive this process, however that ends.
        with_us = [packages.program("setpriv"), "--pdeathsig", "KILL"]
        return [
            *with_us,
            packages.program("qemu-system-x86_64"),
            *("-machine", "q35", "-accel", self.accelerator, "-cpu", "max", "-smp", "2"),
            *("-m", "2G", "-nodefaults", "-display", "none", "-no-reboot", "-rtc", "base=utc"),
            *("-kernel", str(self.cache.kernel), "-initrd", str(directory / "initramfs")),
            *("-append", KERNEL_OPTIONS, "-serial", "chardev:console"),
            # Read-only here, where nobody in the guest can change it.
            "-virtfs",
            "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap",
            # Reports leave through a port that takes bytes and gives none.
            *("-device", "virtio-serial", "-device", "virtserialport,chardev=report,name=report"),
            *("-chardev", f"file,id=report,path={directory / 'report'}"),
            # The host's page cache takes all writes, so that the limits are slower than the disk.
            "-drive",
            f"file={directory / 'disk'},if=virtio,format=raw,cache=unsafe",
        ]


def _copy(path: Path) -> Entry:
    """Return a file of the host as the initramfs keeps it, below ``hot``."""
    about = path.lstat()
    if path.is_symlink():
        content = os.fsencode(path.readlink())
    else:
        content = path.read_bytes() if path.is_file() else b""
    owner = (about.st_uid, about.st_gid)
    return Entry(f"hot{path}", content, about.st_mode, *owner, int(about.st_mtime))


def _watch(qemu: list[str], time_limit: float, show: Callable[[str], None]) -> Ended:
    """Run QEMU until it ends or the time is up; return what its console said."""
    deadline = time.monotonic() + time_limit
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    console = ""
    output, writer = os.pipe()
    process = subprocess.Popen(
        qemu, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.STDOUT
    )
    os.close(writer)
    try:
        while select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = os.read(output, 65536)
            if not chunk:
                return Ended(process.wait(), console)
            text = decoder.decode(chunk).replace("\r", "")
            show(text)
            console = (console + text)[-CONSOLE_KEPT:]
    finally:
        process.kill()
        process.wait()
        os.close(output)
    return Ended(process.returncode, console, stopped_after=time_limit)
