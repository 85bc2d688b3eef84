"""Between the wire contract and the domain, in both directions. Pure: no I/O, no decisions."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.cgroups.limits import (
    DEFAULT_PERIOD,
    IO_MAX_LIMITS,
    MAX,
    CpuMax,
    DeviceLimit,
    Limits,
)
from jobworker.errors import InvalidArgument
from jobworker.job.event import EventType
from jobworker.job.registry.listing import JobFilter
from jobworker.job.spec import NO_CAP, JobSpec, StopPolicy
from jobworker.job.state import JobStatus, Reason, State
from jobworker.rpc.v1 import jobworker_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobworker.job.event import Told
    from jobworker.job.record import JobRecord
    from jobworker.job.stats import Sample

STATUSES: Final[Mapping[State, pb.Status.ValueType]] = {
    State.PENDING: pb.STATUS_PENDING,
    State.RUNNING: pb.STATUS_RUNNING,
    State.STOPPED: pb.STATUS_STOPPED,
    State.EXITED: pb.STATUS_EXITED,
    State.LOST: pb.STATUS_LOST,
}
REASONS: Final[Mapping[Reason | None, pb.Reason.ValueType]] = {
    None: pb.REASON_UNSPECIFIED,
    Reason.EXITED: pb.REASON_EXITED,
    Reason.SIGNALED: pb.REASON_SIGNALED,
    Reason.STOPPED: pb.REASON_STOPPED,
    Reason.OUT_OF_MEMORY: pb.REASON_OUT_OF_MEMORY,
    Reason.TIMED_OUT: pb.REASON_TIMED_OUT,
    Reason.LOST: pb.REASON_LOST,
}
EVENTS: Final[Mapping[EventType, pb.EventType.ValueType]] = {
    EventType.STARTED: pb.EVENT_TYPE_STARTED,
    EventType.STOPPING: pb.EVENT_TYPE_STOPPING,
    EventType.LIMITS_UPDATED: pb.EVENT_TYPE_LIMITS_UPDATED,
    EventType.PAUSED: pb.EVENT_TYPE_PAUSED,
    EventType.RESUMED: pb.EVENT_TYPE_RESUMED,
    EventType.SIGNALED: pb.EVENT_TYPE_SIGNALED,
    EventType.ENDED: pb.EVENT_TYPE_ENDED,
    EventType.REMOVED: pb.EVENT_TYPE_REMOVED,
}
NO_EXIT_CODE: Final = -1

_SCALARS: Final = (
    "memory_min",
    "memory_low",
    "memory_high",
    "memory_max",
    "memory_swap_max",
    "memory_oom_group",
    "cpu_weight",
    "cpu_burst_max",
    "io_weight",
    "pids_max",
)
_ALIASES: Final = {"disk_read_bps": "io_max_rbps", "disk_write_bps": "io_max_wbps"}
_CPUS_PRECISION: Final = 1e-6
"""Relative: `cpus` is a 32-bit float on the wire."""


def job_spec(request: pb.StartRequest) -> JobSpec:
    """Read a request to start a job.

    Raises InvalidArgument where the message contradicts itself; `JobSpec.check` does the rest.
    """
    return JobSpec(
        command=request.command.name,
        args=tuple(request.command.args),
        limits=limits(request.limits),
        request_id=request.request_id,
        env=dict(request.env),
        working_directory=request.working_directory or "/",
        user=request.user,
        stdin=request.stdin,
        timeout=seconds(request.timeout) if request.HasField("timeout") else None,
        stop=_stop_policy(request.stop),
        name=request.name,
        labels=dict(request.labels),
        output_max_bytes=request.output_max_bytes,
        split_stderr=request.split_stderr,
    )


def _stop_policy(message: pb.StopPolicy) -> StopPolicy:
    default = StopPolicy()
    return StopPolicy(
        signal=message.signal or default.signal,
        grace=seconds(message.grace) if message.HasField("grace") else default.grace,
    )


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def job_filter(request: pb.ListRequest) -> JobFilter:
    """Read which jobs are asked for.

    Raises InvalidArgument for a status or a time that there is not.
    """
    known = {number: state for state, number in STATUSES.items()}
    for number in request.statuses:
        if number not in known:
            raise InvalidArgument("statuses", f"{number} is not a status that a job can have")
    return JobFilter(
        states=frozenset(known[number] for number in request.statuses),
        owner=request.owner,
        name=request.name,
        labels=dict(request.labels),
        created_after=_epoch(request, "created_after"),
        created_before=_epoch(request, "created_before"),
    )


def _epoch(
    request: pb.ListRequest, field: Literal["created_after", "created_before"]
) -> float | None:
    # Divided as whole numbers: a time that `_timestamp` wrote comes back as the same float.
    moment: Timestamp = getattr(request, field)
    try:
        return moment.ToNanoseconds() / 10**9 if request.HasField(field) else None
    except ValueError as error:  # Whole seconds of the years 1 to 9999, and nanoseconds beside.
        raise InvalidArgument(field, str(error)) from None


def limits(message: pb.Limits) -> Limits:
    """Read limits. Raises InvalidArgument if a field and its alias disagree."""
    values: dict[str, Any] = {
        name: getattr(message, name) for name in _SCALARS if message.HasField(name)
    }
    values |= {name: _device_limits(getattr(message, name)) for name in IO_MAX_LIMITS}
    if message.memory:
        _agree(
            "memory", message.memory, "memory_max", values.setdefault("memory_max", message.memory)
        )
    for alias, name in _ALIASES.items():
        if value := getattr(message, alias):
            values[name] = _with_alias(alias, value, name, values[name])
    return Limits(**values, cpu_max=_cpu_max(message))


def _device_limits(messages: Iterable[pb.DeviceLimit]) -> tuple[DeviceLimit, ...]:
    return tuple(DeviceLimit(message.device, message.value) for message in messages)


def _with_alias(
    alias: str, value: int, name: str, given: tuple[DeviceLimit, ...]
) -> tuple[DeviceLimit, ...]:
    for limit in given:
        if not limit.device:
            _agree(alias, value, name, limit.value)
            return given
    return (DeviceLimit("", value), *given)


def _cpu_max(message: pb.Limits) -> CpuMax | None:
    given = None
    if message.HasField("cpu_max"):
        given = CpuMax(message.cpu_max.quota_us, message.cpu_max.period_us or DEFAULT_PERIOD)
    if not message.cpus:
        return given
    if not isfinite(message.cpus) or message.cpus < 0:
        raise InvalidArgument("limits.cpus", f"{message.cpus} is not a number of CPUs")
    if given is None:
        return CpuMax(round(message.cpus * DEFAULT_PERIOD))
    if abs(given.quota_us / given.period_us - message.cpus) > message.cpus * _CPUS_PRECISION:
        _agree("cpus", message.cpus, "cpu_max", given.quota_us / given.period_us)
    return given


def _agree(alias: str, value: float, name: str, other: float) -> None:
    if value != other:
        raise InvalidArgument(
            f"limits.{alias}",
            f"is {value}, but limits.{name}, which means the same, is {other}; set one of them",
        )


def limits_message(value: Limits) -> pb.Limits:
    """Write limits, a field and its alias alike."""
    message = pb.Limits()
    for name in _SCALARS:
        if (scalar := getattr(value, name)) is not None:
            setattr(message, name, scalar)
    for name in IO_MAX_LIMITS:
        getattr(message, name).extend(
            pb.DeviceLimit(device=limit.device, value=limit.value) for limit in getattr(value, name)
        )
    message.memory = value.memory_max or 0
    if value.cpu_max is not None:
        message.cpu_max.quota_us = value.cpu_max.quota_us
        message.cpu_max.period_us = value.cpu_max.period_us
        if value.cpu_max.quota_us != MAX:
            message.cpus = value.cpu_max.quota_us / value.cpu_max.period_us
    for alias, name in _ALIASES.items():
        for limit in getattr(value, name):
            if not limit.device:
                setattr(message, alias, limit.value)
    return message


def status_detail(status: JobStatus) -> pb.StatusDetail:
    """Write a status."""
    return pb.StatusDetail(
        status=STATUSES[status.state],
        exit_code=NO_EXIT_CODE if status.exit_code is None else status.exit_code,
        signal=status.signal or 0,
        reason=REASONS[status.reason],
        message=status.message,
    )


def command_message(spec: JobSpec) -> pb.Command:
    """Write what is executed."""
    return pb.Command(name=spec.command, args=spec.args)


def job_message(
    record: JobRecord,
    output_size: int | None,
    *,
    stderr_size: int | None = None,
    paused: bool = False,
) -> pb.Job:
    """Write everything that is known of a job; sizes (bytes) and `paused` as of now."""
    spec = record.spec
    message = pb.Job(
        id=record.id,
        command=command_message(spec),
        status=status_detail(record.status),
        limits=limits_message(record.limits),
        owner=record.owner,
        name=spec.name,
        labels=spec.labels,
        working_directory=spec.working_directory,
        user=spec.user,
        env_names=sorted(spec.env),
        stop=pb.StopPolicy(signal=spec.stop.signal, grace=_duration(spec.stop.grace)),
        created_at=_timestamp(record.created_at),
        output_size=output_size,
        warnings=record.warnings,
        paused=paused,
        output_max_bytes=NO_CAP if record.output_max_bytes is None else record.output_max_bytes,
        split_stderr=spec.split_stderr,
        stderr_size=stderr_size,
        stopping=record.stop is not None and not record.finished,
    )
    if spec.timeout is not None:
        message.timeout.CopyFrom(_duration(spec.timeout))
    if record.started_at is not None:
        message.started_at.CopyFrom(_timestamp(record.started_at))
    if record.ended_at is not None:
        message.ended_at.CopyFrom(_timestamp(record.ended_at))
    if record.process is not None and not record.finished:
        message.pid = record.process.pid
    if record.finished:
        message.usage.CopyFrom(_usage(record.usage))
    return message


def sample_message(sample: Sample) -> pb.StatsResponse:
    """Write what a job uses."""
    return pb.StatsResponse(
        time=_timestamp(sample.time),
        usage=_usage(sample.usage),
        paused=sample.paused,
        status=status_detail(sample.status),
        **sample.current,
    )


def watch_message(told: Told) -> pb.WatchResponse:
    """Write an event, or only how far the watcher has come."""
    message = pb.WatchResponse(resume_token=told.token)
    if (event := told.event) is not None:
        message.type = EVENTS[event.type]
        message.time.CopyFrom(_timestamp(event.time))
        message.job_id = event.job_id
        message.owner = event.owner
        message.name = event.name
        message.status.CopyFrom(status_detail(event.status))
        message.user = event.user
        message.signal = event.signal
    return message


def _usage(usage: Mapping[str, int]) -> pb.Usage:
    known = pb.Usage.DESCRIPTOR.fields_by_name
    return pb.Usage(**{name: value for name, value in usage.items() if name in known})


def _duration(value: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(value * 1e9))
    return message


def _timestamp(value: float) -> Timestamp:
    message = Timestamp()
    message.FromNanoseconds(round(value * 1e9))
    return message


def last_of_output(request: pb.OutputRequest) -> dict[str, int]:
    """Return how much of the output's end is asked for, ``last_bytes`` or ``last_lines``; or none.

    Raises InvalidArgument if a request says twice where to begin.
    """
    asked = {
        name: getattr(request, name)
        for name in ("last_bytes", "last_lines")
        if request.HasField(name)
    }
    given = [*(["offset"] if request.offset else []), *asked]
    if len(given) > 1:
        raise InvalidArgument(given[-1], f"cannot be combined with {given[0]}; give one of them")
    return asked
