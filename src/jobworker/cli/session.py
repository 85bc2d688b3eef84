"""What the global flags say. It is light on purpose: help and completion load nothing of gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from jobworker.errors import JobWorkerError

FORMATS: Final = ("text", "json")


@dataclass(slots=True)
class Session:
    """The global flags of one invocation; None where flag and environment say nothing."""

    url: str | None = None
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    context: str | None = None
    format: str = "text"


class Failure(JobWorkerError):
    """Raised when a command could not do what it was asked to; the text is for the user.

    `kind` is the name of the server's error (a class of `jobworker.errors`), if it has named one.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind
