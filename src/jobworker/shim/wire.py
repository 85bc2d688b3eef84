"""What server and shim say to each other, and what the shim writes down of an end. Pure: no I/O.

A message is four bytes of length (big endian) and one JSON object. File descriptors travel beside
the message's first byte (SCM_RIGHTS, unix(7)). Requests carry an ``id``, which the reply repeats;
an event has none. Unknown keys are ignored, so that each side may be newer than the other.

==========  ==========================================  =====================  ===================
request     keys                                        fds with the request   reply (and its fds)
==========  ==========================================  =====================  ===================
``hello``   version                                     none                   version, pid,
                                                                               boot_id, jobs
                                                                               (ids of live jobs)
``launch``  see `Launch`                                stdin, output, cgroup  pid, start_time
                                                        directory, job's log   (pidfd)
                                                        directory
``attach``  job_id                                      none                   pid, start_time
                                                                               (pidfd)
``stop``    job_id, signal, grace                       none                   nothing; the end
                                                                               follows as an event
==========  ==========================================  =====================  ===================

A reply is ``{"id": …, "ok": {…}}`` or ``{"id": …, "error": {"kind": …, "errno": …, "message": …}}``;
`ERROR_KINDS` lists the kinds. The one event is ``{"event": "ended", "record": {…}}``, sent to
every connection once a job's exit record is on disk and its cgroup is gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

VERSION: Final = 1
"""The version of these messages and of the exit record."""

HEADER_SIZE: Final = 4
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes; more than any argument list that execve accepts, escaped as JSON."""

SOCKET_NAME: Final = "shim.sock"
EXIT_RECORD_NAME: Final = "exit.json"

ERROR_KINDS: Final = (
    "exec",  # execve refused: errno says why
    "chdir",  # the working directory cannot be entered
    "credentials",  # the user's ids could not be taken on
    "clone",  # no process could be made
    "setup",  # another of the child's last steps failed
    "unknown_job",  # the shim has no live job of that id
    "bad_request",  # not a message of this protocol
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All the shim needs to know to start a job, beside the file descriptors.

    `executables` are the paths to try in order (as execvp does); `argv` includes argument 0.
    `uid`, `gid` and `groups` are None to keep the shim's own. Times are seconds.
    """

    job_id: str
    executables: list[str]
    argv: list[str]
    env: dict[str, str]
    working_directory: str
    cgroup_path: str
    uid: int | None = None
    gid: int | None = None
    groups: list[int] | None = None
    timeout: float | None = None
    stop_signal: int = 15
    stop_grace: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How a job ended: the content of exit.json, the source of truth for an end.

    Exactly one of `exit_code` and `signal` is set if the shim saw the end. `stopped` and
    `timed_out` say that the shim had been told to stop the job, or that its time was up, before
    the main process ended. Times are seconds since the epoch; `runtime` is monotonic seconds.
    `output_size` is the final size in bytes. `usage` has the keys of the wire contract's Usage;
    what the kernel did not report is absent. `cgroup_error` says why the cgroup is still there,
    if it could not be removed.
    """

    version: int = VERSION
    job_id: str
    boot_id: str
    pid: int
    exit_code: int | None = None
    signal: int | None = None
    core_dumped: bool = False
    stopped: bool = False
    timed_out: bool = False
    started_at: float
    ended_at: float
    runtime: float
    output_size: int
    usage: dict[str, int] = field(default_factory=dict)
    cgroup_error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExitRecord:
        """Read a record, ignoring keys that a newer shim may have added.

        Raises ValueError or TypeError if what this version needs is missing or malformed.
        """
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


def encode(message: dict[str, Any]) -> bytes:
    """Frame one message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(HEADER_SIZE, "big") + body


def decode(body: bytes) -> dict[str, Any]:
    """Read the JSON of one message. Raises ValueError if it is not a JSON object."""
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")  # noqa: TRY004
    return message
