"""The opaque token of a listing's next page: where it begins, for which filters. Pure: no I/O."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import uuid
from typing import TYPE_CHECKING, Final

from jobworker.errors import InvalidArgument
from jobworker.job.registry.listing import Position

if TYPE_CHECKING:
    from jobworker.job.registry.listing import JobFilter

_VERSION: Final = 1
_POSITION: Final = struct.Struct(">Bd16s")
"""The version, `created_at`, the job's id."""
_DIGEST: Final = 8
"""Bytes of the digest that ties a position to its filters, and finds what was mistyped."""


def write(position: Position, asked: JobFilter) -> str:
    """Return the token of the page that begins after `position`."""
    packed = _POSITION.pack(_VERSION, position.created_at, uuid.UUID(position.id).bytes)
    return base64.urlsafe_b64encode(packed + _digest(packed, asked)).decode()


def read(token: str, asked: JobFilter) -> Position:
    """Return where a page begins. Raises InvalidArgument unless `write` made it for `asked`."""
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        packed, digest = data[: _POSITION.size], data[_POSITION.size :]
        version, created_at, job_id = _POSITION.unpack(packed)
    except (ValueError, struct.error):
        raise _refused() from None
    if version != _VERSION or digest != _digest(packed, asked):
        raise _refused()
    return Position(created_at, str(uuid.UUID(bytes=job_id)))


def _refused() -> InvalidArgument:
    return InvalidArgument(
        "page_token",
        "is no token of this listing; pass on the one of the page before, with the same filters",
    )


def _digest(packed: bytes, asked: JobFilter) -> bytes:
    filters = [
        sorted(state.value for state in asked.states),
        asked.owner,
        asked.name,
        sorted(asked.labels.items()),
        asked.created_after,
        asked.created_before,
    ]
    return hashlib.sha256(packed + json.dumps(filters).encode()).digest()[:_DIGEST]
