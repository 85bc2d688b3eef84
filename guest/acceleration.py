"""Whether KVM works on this machine: /dev/kvm may be there, and a guest on it hang."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guest.failure import GuestFailed
from guest.machine import Guest

if TYPE_CHECKING:
    from guest.cache import Cache

KVM: Final = "kvm"
EMULATION: Final = "tcg,thread=multi"
PROBE_LIMIT: Final = 8.0
"""Seconds for a guest on KVM to boot and power off; it takes about two."""


def accelerator(cache: Cache) -> str:
    """Return what to give to QEMU's ``-accel``; tries KVM once for each boot of the host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATION
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    answer = cache.directory / f"kvm-{boot_id}"
    if not answer.exists():
        for outdated in cache.directory.glob("kvm-*"):
            outdated.unlink(missing_ok=True)
        answer.write_text("works\n" if _kvm_works(cache) else "does not work\n", encoding="ascii")
    return KVM if answer.read_text(encoding="ascii") == "works\n" else EMULATION


def _kvm_works(cache: Cache) -> bool:
    print("guest: trying KVM", file=sys.stderr)
    try:
        return Guest(cache, KVM).run(["true"], time_limit=PROBE_LIMIT).status == 0
    except GuestFailed:
        print("guest: KVM does not work here; guests are emulated", file=sys.stderr)
        return False
