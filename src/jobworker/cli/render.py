"""How answers are shown: aligned text for people, JSON with the wire contract's names. Pure."""

from __future__ import annotations

import base64
import re
import signal
from typing import TYPE_CHECKING, Any, Final

from jobworker.cli import limits, units
from jobworker.rpc.v1.jobworker_pb2 import Limits, Reason, Status, StatusDetail
from jobworker.text import join, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from jobworker.rpc.v1.jobworker_pb2 import Job, StatusResponse, Usage

_LOWER_UPPER: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def to_json(message: Message, indent: int | None = 2, **more: str) -> str:
    """Return a message as JSON.

    Names and structure are the wire contract's. As in protobuf's own JSON, enums are names, bytes
    are base64, durations are ``"1.5s"`` and times RFC 3339; whole numbers are numbers, though.
    What is not set is absent, except plain fields: those are there with their default, but for
    limits, of which a default is none. `more` is what to say besides. Text that a terminal might
    obey stands there as JSON's own escapes, so that it is still the same value.
    """
    import json  # noqa: PLC0415 - most answers are text

    text = json.dumps(more | _plain(message), indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    # Line feeds in strings are escaped already; those that are left separate the lines.
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )


def _plain(message: Message) -> Any:
    if message.DESCRIPTOR.file.package == "google.protobuf":
        return message.ToJsonString()  # type: ignore[attr-defined]  # Duration, Timestamp
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if message.DESCRIPTOR is Limits.DESCRIPTOR and not field.has_presence and not value:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fields[field.name] = dict(value)
        elif field.is_repeated:
            fields[field.name] = [_value(field, item) for item in value]
        else:
            fields[field.name] = _value(field, value)
    return fields


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value


def status_text(response: StatusResponse, now: float, clock: Callable[[float], str]) -> str:
    """Lay a job out for people.

    `now` is seconds since the epoch, and `clock` writes such a time in the user's time zone.
    """
    job = response.job

    def moment(field: str) -> list[str]:
        if not job.HasField(field):  # type: ignore[arg-type]
            return []
        seconds = _epoch(getattr(job, field))
        age = units.format_age(now - seconds)
        return [f"{clock(seconds)} ({age})" if age else clock(seconds)]

    rows: list[tuple[str, list[str]]] = [
        ("job", [job.id]),
        ("name", _given(job.name)),
        ("status", [job_status(job, response.status)]),
        ("", _given(response.status.message)),
        ("command", [join([job.command.name, *job.command.args])] if job.command.name else []),
        ("owner", _given(job.owner)),
        ("user", _given(job.user)),
        ("directory", _given(job.working_directory)),
        ("variables", _given(", ".join(job.env_names))),
        ("labels", [f"{key}={value}" for key, value in sorted(job.labels.items())]),
        ("created", moment("created_at")),
        ("started", moment("started_at")),
        ("ended", moment("ended_at")),
        ("run time", _run_time(job, now)),
        ("timeout", [_seconds(job.timeout)] if job.HasField("timeout") else []),
        ("stop", _stop_policy(job)),
        ("pid", [str(job.pid)] if job.pid else []),
        ("limits", limits.describe(job.limits)),
        ("usage", usage_lines(job.usage)),
        ("output", [_output(job.output_size, job)]),
        ("stderr", [_output(job.stderr_size, job)] if job.split_stderr else []),
        ("warnings", list(job.warnings)),
    ]
    return layout(rows)


def _output(size: int, job: Job) -> str:
    if not job.output_max_bytes or job.output_max_bytes == units.MAX:
        return units.format_size(size)
    return f"{units.format_size(size)}, the newest {units.format_size(job.output_max_bytes)} kept"


def layout(rows: Iterable[tuple[str, list[str]]]) -> str:
    """Write names and their lines in two columns; a name without a line is left out."""
    return "\n".join(
        f"{key if first else '':<10} {printable(line)}"
        for key, lines in rows
        for first, line in zip([True, *[False] * len(lines)], lines, strict=False)
    )


def job_status(job: Job, detail: StatusDetail) -> str:
    """Say a job's status, and what is under way: ``running (stopping)``, ``running (paused)``."""
    return status_line(detail, job.stop.signal, paused=job.paused, stopping=job.stopping)


def status_line(
    detail: StatusDetail, stop_signal: int = 0, *, paused: bool = False, stopping: bool = False
) -> str:
    """Say a status in a word or two: ``running``, ``exited (0)``, ``stopped (timed out)``.

    `stop_signal` is what a stop of the job sends first; 0 means that this is not known.
    """
    state = word(Status.DESCRIPTOR, detail.status)
    reason = "" if not detail.reason else word(Reason.DESCRIPTOR, detail.reason)
    exited = detail.status == Status.STATUS_EXITED
    stopped = detail.status == Status.STATUS_STOPPED
    notes = []
    if reason not in ("", state, "exited", "signaled"):
        notes.append(reason)
    if (exited or stopped) and detail.exit_code >= 0 and not detail.signal:
        alone = exited and not notes
        notes.append(str(detail.exit_code) if alone else f"exit code {detail.exit_code}")
    if stopped and detail.signal == signal.SIGKILL and stop_signal not in (0, signal.SIGKILL):
        notes.append("SIGKILL after the grace period")
    elif detail.signal:
        notes.append(units.format_signal(detail.signal))
    if stopping:
        notes.append("stopping")
    if paused:
        notes.append("paused")
    return f"{state} ({', '.join(notes)})" if notes else state


def word(enum: Any, number: int) -> str:
    """Say a value of an enum of the wire contract in words."""
    value = enum.values_by_number.get(number)
    if value is None:
        return f"unknown ({number})"
    prefix = _LOWER_UPPER.sub("_", enum.name).upper() + "_"
    return str(value.name).removeprefix(prefix).replace("_", " ").lower()


def _given(text: str) -> list[str]:
    return [text] if text else []


def _seconds(duration: Any) -> str:
    return units.format_duration(duration.ToNanoseconds() / 1e9)


def _run_time(job: Job, now: float) -> list[str]:
    if not job.HasField("started_at"):
        return []
    if job.HasField("ended_at"):
        return [units.format_duration(max(_epoch(job.ended_at) - _epoch(job.started_at), 0))]
    return [f"{units.format_duration(max(now - _epoch(job.started_at), 0))} so far"]


def _epoch(timestamp: Timestamp) -> float:
    return timestamp.ToNanoseconds() / 1e9


def _stop_policy(job: Job) -> list[str]:
    if not job.HasField("stop"):
        return []
    first = units.format_signal(job.stop.signal or signal.SIGTERM)
    if not job.stop.HasField("grace"):
        return [first]
    return [f"{first}, then SIGKILL after {_seconds(job.stop.grace)}"]


def usage_lines(usage: Usage) -> list[str]:
    """Say what a job has used; what is not known, or has not happened, is left out."""

    def time_of(field: str) -> str:
        return units.format_duration(units.seconds_of_us(getattr(usage, field)))

    def size_of(field: str) -> str:
        return units.format_size(getattr(usage, field))

    def there(*fields: str) -> bool:
        return all(usage.HasField(field) for field in fields)  # type: ignore[arg-type]

    lines = []
    if there("cpu_user_us", "cpu_system_us"):
        total = units.seconds_of_us(usage.cpu_user_us + usage.cpu_system_us)
        split = f"{time_of('cpu_user_us')} user, {time_of('cpu_system_us')} system"
        # Counted in the cgroup from its birth on, so before the command is executed.
        lines.append(f"{units.format_duration(total)} CPU, start-up included ({split})")
    if there("memory_peak"):
        lines.append(f"{size_of('memory_peak')} memory at most")
    if usage.memory_swap_peak:
        lines.append(f"{size_of('memory_swap_peak')} swap at most")
    if there("pids_peak"):
        lines.append(f"{usage.pids_peak} processes and threads at most")
    for what in ("read", "write"):
        if there(f"io_{what}_bytes"):
            text = f"{size_of(f'io_{what}_bytes')} {'read' if what == 'read' else 'written'}"
            if there(f"io_{what}_operations"):
                text += f" in {getattr(usage, f'io_{what}_operations')} operations"
            lines.append(text)
    if usage.oom_kills:
        lines.append(f"{usage.oom_kills} processes killed: out of memory")
    if usage.cpu_throttled_periods:
        periods = f"{usage.cpu_throttled_periods} periods"
        lines.append(f"{time_of('cpu_throttled_us')} held up by cpu-max in {periods}")
    if usage.cpu_burst_periods:
        periods = f"{usage.cpu_burst_periods} periods"
        lines.append(f"{time_of('cpu_burst_us')} beyond cpu-max in {periods}")
    lines += [
        f"{times} times held back by {limit}"
        for limit in ("memory-high", "memory-max", "pids-max")
        if (times := getattr(usage, f"{limit.replace('-', '_')}_events"))
    ]
    for what, name in (("cpu", "CPU"), ("memory", "memory"), ("io", "I/O")):
        if getattr(usage, f"{what}_pressure_us"):
            lines.append(f"{time_of(f'{what}_pressure_us')} waiting for {name}")
    return lines
