"""The parent of every job: a small process that outlives servers and knows how jobs ended.

Names are loaded when first used: the shim's own process must not load what its clients need.
"""

from __future__ import annotations

from jobworker.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobworker.shim.client import Client, Launched
    from jobworker.shim.record import ExitRecordCorrupt, read_exit_record
    from jobworker.shim.start import versions
    from jobworker.shim.wire import ExitRecord, Launch

__all__ = [
    "Client",
    "ExitRecord",
    "ExitRecordCorrupt",
    "Launch",
    "Launched",
    "read_exit_record",
    "versions",
]

_HOMES = {
    "Client": "client",
    "ExitRecord": "wire",
    "ExitRecordCorrupt": "record",
    "Launch": "wire",
    "Launched": "client",
    "read_exit_record": "record",
    "versions": "start",
}

__getattr__, __dir__ = attach(__name__, globals(), _HOMES)
