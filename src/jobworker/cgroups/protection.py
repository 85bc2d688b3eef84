"""Memory that jobs have protected, claimed for the cgroup that holds them all.

The kernel protects a cgroup only as far as every cgroup above it is protected (memory.low and
"Memory Protection" in cgroup-v2.rst; effective_protection in mm/page_counter.c). A job's memory.min
alone counts against other jobs under a limit on all jobs, and not at all against the rest of the
machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker.cgroups import parse
from jobworker.cgroups.files import GONE
from jobworker.cgroups.parse import MAX

if TYPE_CHECKING:
    from jobworker.cgroups.files import Files

FILES: Final = ("memory.min", "memory.low")


def claim(directory: str, files: Files) -> None:
    """Give a cgroup the protection that the cgroups directly below it have together.

    More than that would go to those that asked for none, where cgroup2 is mounted with
    memory_recursiveprot. Raises OSError or MalformedText.
    """
    for name in FILES:
        file = f"{directory}/{name}"
        if not files.exists(file):
            continue
        children = [f"{directory}/{child}/{name}" for child in files.children(directory)]
        total = min(sum(_protected(child, files) for child in children), MAX)
        if parse.value(files.read(file), file) != total:
            files.write(file, "max" if total == MAX else str(total))


def release(directory: str, files: Files) -> None:
    """Take back what was claimed for cgroups that are gone. Raises OSError or MalformedText."""
    if any(_protected(f"{directory}/{name}", files) for name in FILES):
        claim(directory, files)


def _protected(file: str, files: Files) -> int:
    try:
        return parse.value(files.read(file), file)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return 0
