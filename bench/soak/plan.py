"""What a job of the soak is to do, drawn from a seed, and what it must be found to have done. Pure.

What a job writes is known beforehand to the last byte, so that every reader's bytes can be compared
with what they must be, wherever it began and whenever it left.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from signal import SIGABRT, SIGKILL, SIGTERM, SIGUSR1
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration

from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

MAX_BURST: Final = 4 * 1024 * 1024
SIGNALS: Final = (SIGABRT, SIGKILL, SIGUSR1)


class Kind(enum.Enum):
    """What jobs of a kind do."""

    EXIT = "exit with a code"
    SIGNAL = "end by a signal of their own"
    TIMEOUT = "run into their time limit"
    STOP = "run until they are stopped"
    DEAF = "ignore the stop signal"


@dataclass(frozen=True, slots=True)
class Plan:
    """One job: its request, and what it writes (`line` again and again, up to `size` bytes).

    `size` is None if it writes until it is ended. `stop_after` is when somebody stops it, in
    seconds after its start. `followers` are the bytes after which each follower leaves and comes
    back once; 0 means that it stays. `removed` says whether it is removed once it was checked.
    """

    number: int
    kind: Kind
    line: bytes
    size: int | None
    code: int
    signal: int
    stop_after: float | None
    timeout: float | None
    followers: tuple[int, ...]
    removed: bool
    script: str = field(repr=False)

    def request(self, ran: Path) -> pb.StartRequest:
        """Return the request; each execution of the job appends a byte to the file `ran`."""
        request = pb.StartRequest(
            command=pb.Command(name="sh", args=["-c", f"printf x >> {ran}; {self.script}"]),
            request_id=f"soak-{self.number}",
            name=f"soak-{self.number}",
            labels={"kind": self.kind.name.lower()},
            stop=pb.StopPolicy(grace=Duration(nanos=500_000_000)),
        )
        if self.timeout is not None:
            request.timeout.FromMilliseconds(int(self.timeout * 1000))
        return request

    def content(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes of the output from `offset` on."""
        if self.size is not None:
            length = min(length, self.size - offset)
        if length <= 0:
            return b""
        skipped = offset % len(self.line)
        repeats = (skipped + length) // len(self.line) + 1
        return (self.line * repeats)[skipped : skipped + length]

    def fault_of(self, status: pb.StatusDetail, *, told: bool) -> str:
        """Return what is wrong with how the job has ended, or nothing; `told`: it was stopped.

        A job that is lost is not wrong here: it is counted.
        """
        if status.status == pb.STATUS_LOST:
            return ""
        if status.status == pb.STATUS_STOPPED:
            expected = told or self.kind in (Kind.TIMEOUT, Kind.STOP, Kind.DEAF)
            return "" if expected else "stopped, but nobody has asked for it"
        if self.kind is Kind.EXIT and (status.exit_code, status.signal) == (self.code, 0):
            return ""
        if self.kind is Kind.SIGNAL and (status.exit_code, status.signal) == (-1, self.signal):
            return ""
        return f"ended with code {status.exit_code}, signal {status.signal}"

    def is_whole(self, status: pb.StatusDetail) -> bool:
        """Whether a job that has ended so has written all of its output."""
        return self.size is not None and status.status == pb.STATUS_EXITED


def draw(number: int, random: Random) -> Plan:
    """Return the plan of the job of that number."""
    kind = random.choices(list(Kind), weights=(50, 12, 12, 16, 10))[0]
    line = f"soak {number} {random.getrandbits(random.choice((16, 256))):x}\n".encode()
    code = random.choice((0, 0, 1, 3, 77, 137, 255))
    signum = int(random.choice(SIGNALS))
    ends_itself = kind in (Kind.EXIT, Kind.SIGNAL)
    size = _size(random, len(line)) if ends_itself else None
    slow = ends_itself and random.random() < 0.3
    if slow:
        size = len(line) * random.randint(1, 40)
    stop_after = random.uniform(0.05, 6) if kind in (Kind.STOP, Kind.DEAF) else None
    if ends_itself and random.random() < 0.1:
        stop_after = random.uniform(0, 1.5)
    return Plan(
        number=number,
        kind=kind,
        line=line,
        size=size,
        code=code,
        signal=signum,
        stop_after=stop_after,
        timeout=random.uniform(0.2, 5) if kind is Kind.TIMEOUT else None,
        followers=tuple(_leaving(random, size) for _ in range(random.choice((0, 1, 1, 2, 3)))),
        removed=random.random() < 0.3,
        script=_script(random, kind, line.decode().rstrip("\n"), size, slow=slow)
        + _ending(random, kind, code, signum),
    )


def _size(random: Random, line: int) -> int:
    return random.choice((0, 1, line, int(2 ** random.uniform(3, 22)), MAX_BURST))


def _leaving(random: Random, size: int | None) -> int:
    return 0 if random.random() < 0.4 else random.randint(1, max(1, size or 2000))


def _script(random: Random, kind: Kind, line: str, size: int | None, *, slow: bool) -> str:
    pause = f"{random.uniform(0.01, 0.3):.3f}"
    tick = f"echo '{line}'; sleep {pause}"
    deaf = "trap '' TERM; " if kind is Kind.DEAF else ""
    if size is None:
        return f"{deaf}while :; do {tick}; done; "
    if slow:
        count = size // (len(line) + 1)
        return f"i=0; while [ $i -lt {count} ]; do {tick}; i=$((i+1)); done; "
    return f"yes '{line}' | head -c {size}; "


def _ending(random: Random, kind: Kind, code: int, signum: int) -> str:
    left_behind = "sleep 1000 & " if random.random() < 0.2 else ""
    if kind is Kind.SIGNAL:
        return f"{left_behind}kill -{signum} $$"
    return f"{left_behind}exit {code}"


assert SIGTERM not in SIGNALS, "what a stop sends would not be told from a job's own end"
