"""The server with one defect: it does not write one limit, and does not miss it when it reads back.

``python -m tests.guest.careless LIMIT FILE serve …``; `mutants` gives it to the tests in the guest.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from jobworker.cgroups import limits
from jobworker.cgroups.files import Files
from jobworker.daemon.main import main


def forget(limit: str, file: str) -> None:
    """Make the writes of a limit to a file do nothing."""
    key = f"{limit.removeprefix('io_max_')}=" if file == "io.max" else ""
    write = Files.write

    def careless(self: Files, path: str, text: str) -> None:
        if Path(path).name != file or key not in text:
            write(self, path, text)

    Files.write = careless
    row = limits._ROWS[limit, file]
    limits._ROWS[limit, file] = replace(row, same=lambda *_: True)


if __name__ == "__main__":
    forget(*sys.argv[1:3])
    del sys.argv[1:3]
    main()
