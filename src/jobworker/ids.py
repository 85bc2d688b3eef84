"""The one accepted form of a job's id, which becomes part of paths only after this."""

from __future__ import annotations

import uuid

from jobworker.errors import InvalidArgument, shown


def parse_job_id(text: str) -> str:
    """Return a job id as it is: a UUID in lower case with hyphens.

    Raises InvalidArgument for anything else.
    """
    if not text:
        raise InvalidArgument("job_id", "is empty")
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise InvalidArgument("job_id", f"{shown(text)} is not a job id (a UUID, as start prints it)")
