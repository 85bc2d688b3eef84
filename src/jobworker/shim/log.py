"""The shim's log: lines on standard error, which the shim points at shim.log."""

from __future__ import annotations

import os
import time
from typing import Final

_STDERR: Final = 2


def log(text: str) -> None:
    """Write one line. A log that cannot be written (a full disk) must not end any job."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        os.write(_STDERR, f"{stamp} {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return
