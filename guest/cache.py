"""What is kept between runs: a kernel with its modules, a busybox, and whether KVM works here.

Nothing in it is precious: removing the directory costs a download.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Final

from guest import bzimage, packages

if TYPE_CHECKING:
    from collections.abc import Iterable

CHECKOUT: Final = Path(__file__).resolve().parent.parent
KERNEL_PACKAGE: Final = "linux-image-amd64"  # The one for clouds has no 9p.
BUSYBOX_PACKAGE: Final = "busybox-static"


@dataclass(frozen=True, slots=True)
class Cache:
    """The directory, with everything in it once `Cache.filled` has returned it."""

    directory: Path

    @classmethod
    def filled(cls) -> Cache:
        """Fetch what is missing. Raises CannotRun."""
        packages.install_programs()
        default = CHECKOUT / ".cache" / "guest"
        cache = cls(Path(os.environ.get("GUEST_CACHE") or default).resolve())
        cache.directory.mkdir(parents=True, exist_ok=True)
        with (cache.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Other checkouts may share it.
            if not cache.unpacked.exists():
                cache._fill()
        return cache

    @property
    def unpacked(self) -> Path:
        """The root of the files of both packages."""
        return self.directory / "unpacked"

    @property
    def kernel(self) -> Path:
        """The kernel, in the form that boots fastest."""
        return self.unpacked / "kernel"

    @property
    def busybox(self) -> Path:
        """A busybox that needs no libraries."""
        return self.unpacked / "bin" / "busybox"

    @property
    def modules(self) -> Path:
        """The kernel's modules."""
        (path,) = (self.unpacked / "lib" / "modules").iterdir()
        return path

    def load_order(self, names: Iterable[str]) -> list[bytes]:
        """Return kernel modules and what they need, in the order to load them."""
        command = [packages.program("modprobe"), "--show-depends", "-d", str(self.unpacked)]
        command += ["-S", self.modules.name, "--all", *names]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines = listing.splitlines()  # "insmod /path ", or "builtin name"
        files = [line.partition(" ")[2].strip() for line in lines if line.startswith("insmod ")]
        return [_module(Path(file)) for file in dict.fromkeys(files)]

    def _fill(self) -> None:
        fresh = Path(mkdtemp(dir=self.directory))
        try:
            packages.unpack(packages.dependency(KERNEL_PACKAGE), fresh)
            packages.unpack(BUSYBOX_PACKAGE, fresh)
            for name in ("bin", "lib"):  # Debian 13 has its files below /usr alone.
                if not (fresh / name).exists():
                    (fresh / name).symlink_to(f"usr/{name}")
            (image,) = (fresh / "boot").glob("vmlinuz-*")
            (fresh / "kernel").write_bytes(bzimage.decompressed(image.read_bytes()))
            (modules,) = (fresh / "lib" / "modules").iterdir()
            depmod = [packages.program("depmod"), "-b", str(fresh), modules.name]
            subprocess.run(depmod, check=True)
            fresh.chmod(0o755)
            fresh.rename(self.unpacked)
        except BaseException:
            shutil.rmtree(fresh)
            raise


def _module(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content  # xz since Debian 13
