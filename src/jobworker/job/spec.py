"""What to run and how, as one value that is checked before anything is touched. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - msgspec resolves the annotations
from dataclasses import dataclass, field
from math import isfinite
from signal import SIGRTMAX, SIGTERM
from typing import Final

from jobworker.cgroups import Limits
from jobworker.errors import InvalidArgument, shown

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_REQUEST_ID: Final = 128
MAX_NAME: Final = 128
MAX_LABELS: Final = 64
MAX_LABEL_KEY: Final = 63
MAX_LABEL_VALUE: Final = 255
MAX_STDIN: Final = 1024 * 1024
MAX_PATH: Final = 4096
"""Bytes, the kernel's PATH_MAX."""
MAX_FILE_NAME: Final = 255
"""Bytes, the kernel's NAME_MAX."""
MAX_VARIABLE: Final = 128 * 1024 - 2
"""Bytes of name and value together: execve(2) takes 32 pages, with "=" and a NUL."""
MIN_OUTPUT_MAX: Final = 64 * 1024
"""The smallest cap on an output, in bytes."""
LARGEST_SIZE: Final = 2**63 - 1
"""What the kernel lets a file become, in bytes: a larger cap is none."""
NO_CAP: Final = 2**64 - 1
"""The cap that is none, as on the wire."""
MAX_SECONDS: Final = 10 * 365 * 86400
"""The longest timeout or grace period: ten years is a typing error, not a plan."""

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPolicy:
    """How a job is asked to end: `signal`, then after `grace` seconds SIGKILL to all of it."""

    signal: int = SIGTERM
    grace: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What to run and how. `timeout` is wall-clock seconds; an empty `user` is the server's own.

    `output_max_bytes` is how many bytes of each output are kept, the newest: 0 means the server's
    default, NO_CAP all. `split_stderr` keeps standard error apart.
    """

    command: str
    args: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    request_id: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = "/"
    user: str = ""
    stdin: bytes = b""
    timeout: float | None = None
    stop: StopPolicy = field(default_factory=StopPolicy)
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    output_max_bytes: int = 0
    split_stderr: bool = False

    def check(self) -> None:
        """Raise InvalidArgument, naming the field, if this can never be run."""
        _check_text("command.name", self.command, longest=MAX_PATH)
        if not self.command:
            raise InvalidArgument("command.name", "is empty; name the program to run")
        if "/" not in self.command and len(self.command.encode()) > MAX_FILE_NAME:
            raise InvalidArgument("command.name", f"is longer than {MAX_FILE_NAME} bytes")
        for index, arg in enumerate(self.args):
            _check_text(f"command.args[{index}]", arg)
        self.limits.check()
        _check_text("request_id", self.request_id, longest=MAX_REQUEST_ID)
        self._check_env()
        _check_text("working_directory", self.working_directory, longest=MAX_PATH)
        if not self.working_directory.startswith("/"):
            raise InvalidArgument(
                "working_directory",
                f"{shown(self.working_directory)} is not an absolute path",
            )
        _check_text("user", self.user, longest=MAX_NAME)
        if len(self.stdin) > MAX_STDIN:
            raise InvalidArgument(
                "stdin", f"is {len(self.stdin)} bytes long; at most {MAX_STDIN} are accepted"
            )
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
            if self.timeout == 0:
                raise InvalidArgument("timeout", "must be more than 0 s")
        check_signal("stop.signal", self.stop.signal)
        check_seconds("stop.grace", self.stop.grace)
        _check_text("name", self.name, longest=MAX_NAME)
        self._check_labels()
        if 0 < self.output_max_bytes < MIN_OUTPUT_MAX:
            raise InvalidArgument(
                "output_max_bytes",
                f"{self.output_max_bytes} bytes are too few; at least {MIN_OUTPUT_MAX} (64 KiB)",
            )

    def _check_env(self) -> None:
        for key, value in self.env.items():
            if not _ENV_NAME.fullmatch(key):
                raise InvalidArgument(
                    "env", f"{shown(key)} is not a variable's name (letters, digits and _)"
                )
            _check_text(f"env[{shown(key)}]", value, longest=MAX_VARIABLE - len(key))

    def _check_labels(self) -> None:
        if len(self.labels) > MAX_LABELS:
            raise InvalidArgument(
                "labels", f"{len(self.labels)} labels; at most {MAX_LABELS} are accepted"
            )
        for key, value in self.labels.items():
            if len(key) > MAX_LABEL_KEY or not _LABEL_KEY.fullmatch(key):
                raise InvalidArgument(
                    "labels",
                    f"{shown(key)} is not a label's key (at most {MAX_LABEL_KEY} letters, digits, "
                    "'.', '_', '/' and '-', first and last a letter or digit)",
                )
            _check_text(f"labels[{shown(key)}]", value, longest=MAX_LABEL_VALUE)


def check_signal(name: str, signum: int) -> None:
    """Raise InvalidArgument unless `signum` is a signal's number."""
    if not 1 <= signum <= SIGRTMAX:
        raise InvalidArgument(name, f"{signum} is not a signal's number (1 to {SIGRTMAX})")


def check_seconds(name: str, seconds: float) -> None:
    """Raise InvalidArgument unless `seconds` is a sensible time span."""
    if not isfinite(seconds) or seconds < 0 or seconds > MAX_SECONDS:
        raise InvalidArgument(name, f"{seconds} s is not between 0 and {MAX_SECONDS} s")


def effective_cap(asked: int, default: int | None) -> int | None:
    """Return how many bytes of an output are kept, None for all: `asked`, or the `default`."""
    cap = asked or default
    return None if cap is None or cap > LARGEST_SIZE else cap


def executables(command: str, path: str) -> list[str]:
    """Return the paths to try for `command`, in order, as execvp(3) does.

    A name without a slash is looked up in `path`; an empty entry there means nothing to us
    (POSIX reads it as the current directory, which is nobody's intention here).
    """
    if "/" in command:
        return [command]
    directories = dict.fromkeys(path.split(":"))
    return [f"{directory.rstrip('/')}/{command}" for directory in directories if directory]


def _check_text(name: str, text: str, *, longest: int | None = None) -> None:
    if "\0" in text:
        raise InvalidArgument(name, "contains a NUL byte")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(name, "is not valid Unicode") from None
    if longest is not None and size > longest:
        raise InvalidArgument(name, f"is longer than {longest} bytes")
