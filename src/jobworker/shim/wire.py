"""What server and shim say to each other, and what the shim writes down of an end. Pure: no I/O.

A message is four bytes of length (big endian) and one JSON object. File descriptors travel beside
the message's first byte (SCM_RIGHTS, unix(7)), and the key ``fds`` says how many. Unknown keys are
ignored, so that each side may be newer than the other.

A request is ``{"id": …, "op": …, "args": {…}}``, its reply ``{"id": …, "ok": {…}}`` or ``{"id": …,
"error": {"kind": …, "errno": …, "message": …}}`` with a kind from `ERROR_KINDS`. An ``id`` is an
integer of the client's choice; it is null where the request's own could not be read.

==========  ====================  =====================  ==========================================
op          args                  fds with the request   ok (and its fds)
==========  ====================  =====================  ==========================================
``hello``   version               none                   version, pid, jobs (ids of live jobs),
                                                         ended (records of jobs that have ended but
                                                         whose exit.json could not be written yet)
``launch``  see `Launch`          stdin, output, cgroup  pid, start_time, started_at, stopped
                                  directory, job's log   (pidfd)
                                  directory; the file
                                  for stderr if it is
                                  split
``attach``  job_id                none                   the same
``stop``    job_id, signal,       none                   nothing; the end follows as an event
            grace
==========  ====================  =====================  ==========================================

``launch`` and ``attach`` are answered once execve has succeeded or failed; after a failure, no
process of the job is left and its cgroup is empty, but still there.

The one event is ``{"event": "ended", "record": {…}}``. It goes to every connection that has said
hello, once a job's exit record is on disk (or the attempt to write it has failed) and its cgroup is
gone (or `ExitRecord.cgroup_error` says why not). A reply "unknown_job" never overtakes the event of
the same job.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

VERSION: Final = 2
"""The version of these messages and of the exit record."""
SPEAKS: Final = frozenset({1, VERSION})
"""The versions of shims that this one can be the server of.

Version 1 has no caps, no separate streams, and no `stopped`; it is sent no launch.
"""

HEADER_SIZE: Final = 4
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes; more than any argument list that execve accepts by default, escaped as JSON."""
MAX_FDS: Final = 5
"""The most descriptors that any message carries."""
LAUNCH_FDS: Final = 4
"""One more if standard error has a file of its own."""


def socket_name(version: int) -> str:
    """Return the name of the socket of a version's shim; only the first had no version in it."""
    return "shim.sock" if version == 1 else f"shim-{version}.sock"


def lock_name(version: int) -> str:
    """Return the name of the file that a version's shim holds a lock on."""
    return f"shim-{version}.lock"


SOCKET_NAME: Final = socket_name(VERSION)
LOCK_NAME: Final = lock_name(VERSION)
"""Shims of several versions can share a run directory: each keeps the jobs that it has."""
LOG_NAME: Final = "shim.log"
EXIT_RECORD_NAME: Final = "exit.json"

ERROR_KINDS: Final = (
    "exec",  # execve refused: errno says why
    "chdir",  # the working directory cannot be entered
    "credentials",  # the user's ids could not be taken on
    "clone",  # no process could be made in the cgroup
    "setup",  # another of the last steps before execve failed
    "unknown_job",  # the shim has no live job of that id
    "bad_request",  # not a message of this protocol, or one that cannot be right
)

_MAX_SECONDS: Final = 10.0**12
_MAX_SIGNAL: Final = 64
_MAX_COUNT: Final = 2**63 - 1
_MAX_EPOCH: Final = 253_402_300_799
"""9999-12-31T23:59:59Z in seconds since the epoch: what a protobuf Timestamp ends with."""
_MAX_PID: Final = 2**22
"""PID_MAX_LIMIT on 64-bit machines (proc(5))."""
_MAX_JOB_ID: Final = 64


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    return (isinstance(value, float) or _is_int(value)) and 0 <= value <= _MAX_SECONDS  # type: ignore[operator]


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _list_of(item: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(item(each) for each in value)


def _dict_of(item: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(item(each) for each in value.values())


def _optional(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_CHECKS: Final[dict[str, Callable[[object], bool]]] = {
    "str": _is_str,
    "int": _is_int,
    "bool": lambda value: isinstance(value, bool),
    "float": _is_seconds,
    "int | None": _optional(_is_int),
    "float | None": _optional(_is_seconds),
    "list[str]": _list_of(_is_str),
    "list[int] | None": _optional(_list_of(_is_int)),
    "dict[str, str]": _dict_of(_is_str),
    "dict[str, int]": _dict_of(_is_int),
}
"""The annotation of a field → whether a JSON value fits it. Every float is a time in seconds."""

_Message = TypeVar("_Message", "Launch", "ExitRecord")


def _from_json(cls: type[_Message], data: object) -> _Message:
    """Build `cls` from a JSON object, ignoring keys that a newer peer may have added."""
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004
    known = {}
    for name, annotation in cls.__annotations__.items():
        if name not in data:
            continue
        kind = annotation.__forward_arg__  # NamedTuple wraps the text of an annotation
        if not _CHECKS[kind](data[name]):
            raise ValueError(f"{name} must be {kind}")
        known[name] = data[name]
    try:
        return cls(**known)
    except TypeError as error:
        raise ValueError(str(error).partition("() ")[2]) from None


class Launch(NamedTuple):
    """All the shim needs to know to start a job, beside the file descriptors.

    `executables` are the paths to try in order (as execvp does); a relative one is relative to
    `working_directory`. `argv` includes argument 0. `uid`, `gid` and `groups` are None to keep the
    shim's own; with a `uid` and no `groups` the supplementary groups are dropped. `timeout` and
    `stop_grace` are seconds. `output_max_bytes` is how many bytes of each output are kept, None all
    of them; with `split_stderr` there are two. Text is UTF-8, with lone surrogates for bytes that
    are not (PEP 383).
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
    output_max_bytes: int | None = None
    split_stderr: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the request's arguments as a JSON object."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: object) -> Launch:
        """Read a launch request. Raises ValueError if it cannot be right."""
        launch = _from_json(cls, data)
        launch.check()
        return launch

    def check(self) -> None:
        """Raise ValueError if execve or the kernel's other interfaces could not take a value."""
        if not self.job_id or not self.executables or not self.argv:
            raise ValueError("job_id, executables and argv must not be empty")
        if not self.cgroup_path.startswith("/") or not self.working_directory.startswith("/"):
            raise ValueError("cgroup_path and working_directory must be absolute")
        if any("=" in name or not name for name in self.env):
            raise ValueError("env: a name must not be empty or contain '='")
        texts = (self.cgroup_path, self.working_directory, *self.executables, *self.argv)
        _check_texts((*texts, *self.env, *self.env.values()))
        check_signal(self.stop_signal)
        ids = (self.uid or 0, self.gid or 0, *(self.groups or ()))
        if not all(0 <= each < 2**32 - 1 for each in ids):
            raise ValueError("uid, gid and groups must be ids of users and groups")
        if self.output_max_bytes is not None:
            _check_range("output_max_bytes", self.output_max_bytes, 1, _MAX_COUNT)


def _check_range(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}")


def _check_texts(texts: Iterable[str]) -> None:
    for text in texts:
        if "\0" in text:
            raise ValueError("a NUL byte cannot be passed to a command")
        encode_text(text)


def encode_text(text: str) -> bytes:
    """Return the bytes that a path, an argument or a variable stands for, whatever the locale."""
    return text.encode("utf-8", "surrogateescape")


def check_signal(signum: object) -> int:
    """Return `signum` if it is the number of a signal, or raise ValueError."""
    if not isinstance(signum, int) or isinstance(signum, bool) or not 1 <= signum <= _MAX_SIGNAL:
        raise ValueError(f"a signal must be a number from 1 to {_MAX_SIGNAL}")
    return signum


def check_seconds(value: object) -> float:
    """Return `value` if it is a time that can be waited for, or raise ValueError."""
    if not _is_seconds(value):
        raise ValueError("a time must be a number of seconds, not negative")
    return float(value)  # type: ignore[arg-type]


class ExitRecord(NamedTuple):
    """How a job ended: the content of exit.json, the source of truth for an end.

    Exactly one of `exit_code` and `signal` is set. `core_dumped` says that the kernel wrote, or
    piped, a core dump of the main process (CLD_DUMPED, waitid(2)). `stopped` and `timed_out` say
    that the shim had been told to stop the job, or that its time was up, before the main process
    ended. Times are seconds since the epoch; `runtime` is monotonic seconds. `output_size` is the
    final size in bytes, and `stderr_size` that of standard error if it has a file of its own;
    what a cap has dropped counts in both. `usage` has the keys of the wire contract's Usage; what
    the kernel did not report is absent. `cgroup_error` says why the cgroup is still there, if it
    could not be removed.
    """

    job_id: str
    boot_id: str
    pid: int
    started_at: float
    ended_at: float
    runtime: float
    output_size: int
    exit_code: int | None = None
    signal: int | None = None
    core_dumped: bool = False
    stopped: bool = False
    timed_out: bool = False
    stderr_size: int | None = None
    usage: dict[str, int] = {}  # noqa: RUF012 - as all of a record, nobody changes it
    cgroup_error: str = ""
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: object) -> ExitRecord:
        """Read a record of this version or of a newer one, whose additional keys are ignored.

        Raises ValueError if what this version needs is missing or malformed.
        """
        if not isinstance(data, dict) or "version" not in data:
            raise ValueError("not a JSON object with a version")
        record = _from_json(cls, data)
        _check_range("version", record.version, 1, 2**31 - 1)
        record.check()
        return record

    def check(self) -> None:
        """Raise ValueError if no job can have ended so.

        The record lies where a job that runs as root can write, and what it says goes into a
        database and onto the wire: integers of 64 bits, times of this era, and text.
        """
        if (self.exit_code is None) == (self.signal is None):
            raise ValueError("exactly one of exit_code and signal must be set")
        if self.exit_code is not None:
            _check_range("exit_code", self.exit_code, 0, 255)
        if self.signal is not None:
            check_signal(self.signal)
        _check_range("pid", self.pid, 1, _MAX_PID)
        _check_range("started_at", self.started_at, 0, _MAX_EPOCH)
        _check_range("ended_at", self.ended_at, 0, _MAX_EPOCH)
        _check_range("output_size", self.output_size, 0, _MAX_COUNT)
        if self.stderr_size is not None:
            _check_range("stderr_size", self.stderr_size, 0, _MAX_COUNT)
        for name, value in self.usage.items():
            _check_range(f"usage of {name[:_MAX_JOB_ID]!r}", value, 0, _MAX_COUNT)
        if not 1 <= len(self.job_id) <= _MAX_JOB_ID:
            raise ValueError(f"job_id must have 1 to {_MAX_JOB_ID} characters")
        for text in (self.job_id, self.boot_id, self.cgroup_error, *self.usage):
            text.encode()


def encode(message: dict[str, Any]) -> bytes:
    """Frame one message. Raises ValueError if it is larger than MAX_MESSAGE."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(body)} bytes; {MAX_MESSAGE} is the most")
    return len(body).to_bytes(HEADER_SIZE, "big") + body


def decode(body: bytes) -> dict[str, Any]:
    """Read the JSON of one message. Raises ValueError if it is not a JSON object."""
    try:
        message = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")  # noqa: TRY004
    return message


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next(self) -> dict[str, Any] | None:
        """Return the next message, or None if it is not complete yet.

        Raises ValueError if it is larger than MAX_MESSAGE or not a JSON object; nothing after that
        can be understood.
        """
        if len(self._buffer) < HEADER_SIZE:
            return None
        size = int.from_bytes(self._buffer[:HEADER_SIZE], "big")
        if size > MAX_MESSAGE:
            raise ValueError(f"a message of {size} bytes; {MAX_MESSAGE} is the most")
        end = HEADER_SIZE + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER_SIZE:end])
        del self._buffer[:end]
        return decode(body)

    @property
    def partial(self) -> bool:
        """Whether the stream has begun a message that is not complete yet."""
        return bool(self._buffer)
