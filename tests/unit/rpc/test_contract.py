"""The numbers of the wire contract, which no change may move: clients in the field know them."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from jobworker.rpc.v1 import jobworker_pb2 as pb

FIELDS = {
    "Command": {"name": 1, "args": 2},
    "Limits": {
        "memory": 1,
        "cpus": 2,
        "disk_write_bps": 3,
        "disk_read_bps": 4,
        "memory_min": 5,
        "memory_low": 6,
        "memory_high": 7,
        "memory_max": 8,
        "cpu_weight": 9,
        "cpu_max": 10,
        "cpu_burst_max": 11,
        "io_weight": 12,
        "io_max_rbps": 13,
        "io_max_wbps": 14,
        "io_max_riops": 15,
        "io_max_wiops": 16,
        "pids_max": 17,
        "memory_swap_max": 18,
        "memory_oom_group": 19,
    },
    "CpuMax": {"quota_us": 1, "period_us": 2},
    "DeviceLimit": {"device": 1, "value": 2},
    "StopPolicy": {"signal": 1, "grace": 2},
    "StartRequest": {
        "command": 1,
        "limits": 2,
        "request_id": 3,
        "env": 4,
        "working_directory": 5,
        "user": 6,
        "stdin": 7,
        "timeout": 8,
        "stop": 9,
        "name": 10,
        "labels": 11,
        "output_max_bytes": 12,
        "split_stderr": 13,
    },
    "StartResponse": {"job_id": 1, "command": 2, "status": 3, "limits": 4, "warnings": 5},
    "StopRequest": {"job_id": 1, "grace": 2, "signal": 3},
    "StopResponse": {},
    "StatusRequest": {"job_id": 1},
    "StatusResponse": {"status": 1, "job": 2},
    "OutputRequest": {
        "job_id": 1,
        "tail": 2,
        "offset": 3,
        "last_bytes": 4,
        "last_lines": 5,
        "stream": 6,
    },
    "OutputResponse": {"output": 1, "offset": 2, "end": 3},
    "OutputEnd": {"status": 1, "size": 2},
    "StatusDetail": {"status": 1, "exit_code": 2, "signal": 3, "reason": 4, "message": 5},
    "Job": {
        "id": 1,
        "command": 2,
        "status": 3,
        "limits": 4,
        "owner": 5,
        "name": 6,
        "labels": 7,
        "working_directory": 8,
        "user": 9,
        "env_names": 10,
        "timeout": 11,
        "stop": 12,
        "created_at": 13,
        "started_at": 14,
        "ended_at": 15,
        "output_size": 16,
        "pid": 17,
        "usage": 18,
        "warnings": 19,
        "paused": 20,
        "output_max_bytes": 21,
        "split_stderr": 22,
        "stderr_size": 23,
        "request_id": 24,
        "stopping": 25,
    },
    "Usage": {
        "cpu_user_us": 1,
        "cpu_system_us": 2,
        "memory_peak": 3,
        "io_read_bytes": 4,
        "io_write_bytes": 5,
        "io_read_operations": 6,
        "io_write_operations": 7,
        "oom_kills": 8,
        "pids_peak": 9,
        "cpu_pressure_us": 10,
        "memory_pressure_us": 11,
        "io_pressure_us": 12,
        "memory_swap_peak": 13,
        "cpu_throttled_periods": 14,
        "cpu_throttled_us": 15,
        "cpu_burst_periods": 16,
        "cpu_burst_us": 17,
        "memory_high_events": 18,
        "memory_max_events": 19,
        "pids_max_events": 20,
    },
    "UpdateLimitsRequest": {"job_id": 1, "limits": 2},
    "UpdateLimitsResponse": {"limits": 1, "warnings": 2},
    "PauseRequest": {"job_id": 1},
    "PauseResponse": {},
    "ResumeRequest": {"job_id": 1},
    "ResumeResponse": {},
    "StatsRequest": {"job_id": 1, "interval": 2, "follow": 3},
    "StatsResponse": {
        "time": 1,
        "usage": 2,
        "memory_current": 3,
        "pids_current": 4,
        "memory_swap_current": 5,
        "paused": 6,
        "status": 7,
    },
    "ListRequest": {
        "statuses": 1,
        "owner": 2,
        "name": 3,
        "labels": 4,
        "created_after": 5,
        "created_before": 6,
        "page_size": 7,
        "page_token": 8,
    },
    "ListResponse": {"jobs": 1, "next_page_token": 2},
    "WaitRequest": {"job_id": 1, "timeout": 2},
    "WaitResponse": {"status": 1},
    "WatchRequest": {"resume_token": 1, "job_id": 2, "owner": 3},
    "WatchResponse": {
        "resume_token": 1,
        "type": 2,
        "time": 3,
        "job_id": 4,
        "owner": 5,
        "name": 6,
        "status": 7,
        "user": 8,
        "signal": 9,
    },
    "SignalRequest": {"job_id": 1, "signal": 2, "all": 3},
    "SignalResponse": {},
    "RemoveRequest": {"job_id": 1},
    "RemoveResponse": {},
}
ENUMS = {
    "Status": {
        "STATUS_UNSPECIFIED": 0,
        "STATUS_PENDING": 1,
        "STATUS_RUNNING": 2,
        "STATUS_STOPPED": 3,
        "STATUS_EXITED": 4,
        "STATUS_LOST": 5,
    },
    "Reason": {
        "REASON_UNSPECIFIED": 0,
        "REASON_EXITED": 1,
        "REASON_SIGNALED": 2,
        "REASON_STOPPED": 3,
        "REASON_OUT_OF_MEMORY": 4,
        "REASON_TIMED_OUT": 5,
        "REASON_LOST": 6,
    },
    "OutputStream": {
        "OUTPUT_STREAM_UNSPECIFIED": 0,
        "OUTPUT_STREAM_STDOUT": 1,
        "OUTPUT_STREAM_STDERR": 2,
    },
    "EventType": {
        "EVENT_TYPE_UNSPECIFIED": 0,
        "EVENT_TYPE_STARTED": 1,
        "EVENT_TYPE_STOPPING": 2,
        "EVENT_TYPE_LIMITS_UPDATED": 3,
        "EVENT_TYPE_PAUSED": 4,
        "EVENT_TYPE_RESUMED": 5,
        "EVENT_TYPE_SIGNALED": 6,
        "EVENT_TYPE_ENDED": 7,
        "EVENT_TYPE_REMOVED": 8,
    },
}
SEED_TYPES = {
    "Command.name": "string",
    "Command.args": "repeated string",
    "Limits.memory": "uint64",
    "Limits.cpus": "float",
    "Limits.disk_write_bps": "uint64",
    "Limits.disk_read_bps": "uint64",
    "StartRequest.command": "Command",
    "StartRequest.limits": "Limits",
    "StartResponse.job_id": "string",
    "StartResponse.command": "Command",
    "StartResponse.status": "StatusDetail",
    "StartResponse.limits": "Limits",
    "StopRequest.job_id": "string",
    "StatusRequest.job_id": "string",
    "StatusResponse.status": "StatusDetail",
    "OutputRequest.job_id": "string",
    "OutputRequest.tail": "bool",
    "OutputResponse.output": "bytes",
    "StatusDetail.status": "Status",
    "StatusDetail.exit_code": "int32",
}
"""What the clients of the API send and read that this one has grown from."""

SCALARS = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def type_of(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    name = named.name if named is not None else SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def test_every_message_has_the_fields_it_had_under_their_numbers():
    assert {
        message.name: {field.name: field.number for field in message.fields}
        for message in pb.DESCRIPTOR.message_types_by_name.values()
    } == FIELDS


def test_every_enum_has_the_values_it_had_under_their_numbers():
    assert {
        enum.name: {value.name: value.number for value in enum.values}
        for enum in pb.DESCRIPTOR.enum_types_by_name.values()
    } == ENUMS


@pytest.mark.parametrize(("name", "type_"), SEED_TYPES.items())
def test_what_older_clients_know_has_the_type_it_had(name, type_):
    message, field = name.split(".")
    descriptor = pb.DESCRIPTOR.message_types_by_name[message].fields_by_name[field]
    assert type_of(descriptor) == type_


def test_the_service_has_the_methods_it_had():
    assert pb.DESCRIPTOR.package == "jobworker.v1"
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.name == "JobWorkerService"
    assert [
        (method.name, method.input_type.name, method.output_type.name, method.server_streaming)
        for method in service.methods
    ] == [
        ("Start", "StartRequest", "StartResponse", False),
        ("Stop", "StopRequest", "StopResponse", False),
        ("Status", "StatusRequest", "StatusResponse", False),
        ("Output", "OutputRequest", "OutputResponse", True),
        ("UpdateLimits", "UpdateLimitsRequest", "UpdateLimitsResponse", False),
        ("Pause", "PauseRequest", "PauseResponse", False),
        ("Resume", "ResumeRequest", "ResumeResponse", False),
        ("Stats", "StatsRequest", "StatsResponse", True),
        ("List", "ListRequest", "ListResponse", False),
        ("Wait", "WaitRequest", "WaitResponse", False),
        ("Watch", "WatchRequest", "WatchResponse", True),
        ("Signal", "SignalRequest", "SignalResponse", False),
        ("Remove", "RemoveRequest", "RemoveResponse", False),
    ]
