"""The parent of every job: a small process that outlives servers and knows how jobs ended.

Names are loaded when first used: the shim's own process must not load what its clients need.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobworker.shim.client import Client, Launched
    from jobworker.shim.record import ExitRecordCorrupt, read_exit_record
    from jobworker.shim.wire import ExitRecord, Launch

__all__ = ["Client", "ExitRecord", "ExitRecordCorrupt", "Launch", "Launched", "read_exit_record"]

_HOMES = {
    "Client": "client",
    "ExitRecord": "wire",
    "ExitRecordCorrupt": "record",
    "Launch": "wire",
    "Launched": "client",
    "read_exit_record": "record",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - not for the shim

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
