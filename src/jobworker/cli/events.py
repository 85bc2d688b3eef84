"""How events of jobs are shown: a line each. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker.cli import units
from jobworker.cli.render import status_line, word
from jobworker.rpc.v1.jobworker_pb2 import EventType
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.rpc.v1.jobworker_pb2 import WatchResponse

_EVENT_WIDTH: Final = 20
_STATUS_WIDTH: Final = 11


def line(event: WatchResponse, clock: Callable[[float], str]) -> str:
    """Write time, job, event, status and who asked; the job's name, if it has one, comes last.

    `clock` writes seconds since the epoch in the user's time zone.
    """
    what = word(EventType.DESCRIPTOR, event.type)
    if event.signal:
        what += f" ({units.format_signal(event.signal)})"
    columns = [
        clock(event.time.ToNanoseconds() / 1e9),
        event.job_id,
        what.ljust(_EVENT_WIDTH),
        status_line(event.status).ljust(_STATUS_WIDTH),
        event.user or "-",
        *([event.name] if event.name else []),
    ]
    return printable("  ".join(columns))
