"""The host's files that the guest reads most: it gets them in memory.

Any other file of the host takes an emulated guest a round trip of 1 to 3 ms to open, where one in
memory takes 0.03 ms, and Python opens two for each module. A file that is missing here is slower,
nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guest import packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROGRAMS: Final = (
    *("sh", "sleep", "head", "tail", "cat", "dd", "true", "mount", "findmnt", "taskset", "setsid"),
)
SETTINGS: Final = ("/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf")
MODULES: Final = (
    *("pytest", "_pytest.junitxml", "pytest_asyncio.plugin", "pytest_timeout"),
    *("jobworker.daemon.serve", "jobworker.cli.main", "jobworker.shim.main"),
    *("jobworker.auth.certs", "jobworker.testing.contract"),
)
"""What to load to know what the tests load."""

_LIST_FILES: Final = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
    print(getattr(module, "__cached__", None) or "")
for line in open("/proc/self/maps"):
    print(line.partition("/")[1] + line.partition("/")[2].rstrip())
"""


def paths(directory: Path) -> list[Path]:
    """Return the files, with the directories and symbolic links on the way, each after its parent.

    `directory` is that of the checkout, whose modules are loaded.
    """
    files = [*SETTINGS, sys.executable, *_loaded(directory)]
    for program in filter(None, map(packages.find, PROGRAMS)):
        files += [program, *_libraries(program)]
    return list(dict.fromkeys(step for file in files for step in _way(Path(file))))


def _loaded(directory: Path) -> Iterable[str]:
    """Return the files of MODULES, of the modules that they load, and of shared libraries."""
    command = [sys.executable, "-c", _LIST_FILES, *MODULES]
    listing = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    return filter(None, listing.stdout.splitlines())


def _libraries(program: str) -> Iterable[str]:
    command = [packages.program("ldd"), program]  # It fails for what is linked statically.
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return (word for word in listing.split() if word.startswith("/"))


def _way(file: Path) -> Iterator[Path]:
    """Yield what a lookup of an absolute path meets below the root; nothing if it leads nowhere."""
    if not file.exists():
        return
    steps = Path(os.path.normpath(file)).parts[1:]
    here = Path("/")
    for number, step in enumerate(steps):
        here /= step
        yield here
        if here.is_symlink():
            rest = Path(*steps[number + 1 :])
            yield from _way(here.parent / here.readlink() / rest)
            return
