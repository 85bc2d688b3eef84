from dataclasses import fields, replace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.cgroups import MAX, CpuMax, DeviceLimit, Limits, cgroup
from jobworker.errors import InvalidArgument
from jobworker.job import JobRecord, JobSpec, JobStatus, Reason, State, StopPolicy
from jobworker.job.event import EventType, JobEvent, Told
from jobworker.job.record import AcceptedStop, Process
from jobworker.job.stats import Sample
from jobworker.rpc import convert
from jobworker.rpc.v1 import jobworker_pb2 as pb

FULL = Limits(
    memory_min=1,
    memory_low=2,
    memory_high=3,
    memory_max=MAX,
    memory_swap_max=5,
    memory_oom_group=True,
    cpu_weight=6,
    cpu_max=CpuMax(50_000, 200_000),
    cpu_burst_max=7,
    io_weight=8,
    io_max_rbps=(DeviceLimit("", 9), DeviceLimit("/dev/vda", 10)),
    io_max_wbps=(DeviceLimit("8:0", 11),),
    io_max_riops=(DeviceLimit("", 12),),
    io_max_wiops=(DeviceLimit("", MAX),),
    pids_max=13,
)


def test_every_limit_survives_the_round_trip():
    assert all(getattr(FULL, field.name) not in (None, ()) for field in fields(Limits))
    assert convert.limits(convert.limits_message(FULL)) == FULL


def test_a_quota_without_a_bound_is_no_number_of_cpus():
    message = convert.limits_message(Limits(cpu_max=CpuMax(MAX)))
    assert message.cpus == 0
    assert convert.limits(message) == Limits(cpu_max=CpuMax(MAX))


def test_no_limits_are_no_limits():
    assert convert.limits(pb.Limits()) == Limits()
    assert convert.limits_message(Limits()) == pb.Limits()


def test_every_limit_of_the_contract_is_a_limit_of_the_domain():
    aliases = {"memory", "cpus", "disk_read_bps", "disk_write_bps"}
    contract = {field.name for field in pb.Limits.DESCRIPTOR.fields} - aliases
    assert contract == {field.name for field in fields(Limits)}


@pytest.mark.parametrize(
    ("message", "limits"),
    [
        (pb.Limits(memory=4096), Limits(memory_max=4096)),
        (pb.Limits(memory=4096, memory_max=4096), Limits(memory_max=4096)),
        (pb.Limits(cpus=1.5), Limits(cpu_max=CpuMax(150_000))),
        (
            pb.Limits(cpus=0.1, cpu_max=pb.CpuMax(quota_us=5_000, period_us=50_000)),
            Limits(cpu_max=CpuMax(5_000, 50_000)),
        ),
        (pb.Limits(cpu_max=pb.CpuMax(quota_us=5_000)), Limits(cpu_max=CpuMax(5_000, 100_000))),
        (pb.Limits(disk_read_bps=7), Limits(io_max_rbps=(DeviceLimit("", 7),))),
        (pb.Limits(disk_write_bps=7), Limits(io_max_wbps=(DeviceLimit("", 7),))),
        (
            pb.Limits(disk_write_bps=7, io_max_wbps=[pb.DeviceLimit(device="8:0", value=1)]),
            Limits(io_max_wbps=(DeviceLimit("", 7), DeviceLimit("8:0", 1))),
        ),
    ],
)
def test_an_alias_means_the_same_as_its_limit(message, limits):
    assert convert.limits(message) == limits


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Limits(memory=1, memory_max=2), "limits.memory"),
        (pb.Limits(cpus=1, cpu_max=pb.CpuMax(quota_us=50_000)), "limits.cpus"),
        (pb.Limits(cpus=-1), "limits.cpus"),
        (pb.Limits(cpus=float("nan")), "limits.cpus"),
        (pb.Limits(cpus=float("inf")), "limits.cpus"),
        (
            pb.Limits(disk_write_bps=1, io_max_wbps=[pb.DeviceLimit(value=2)]),
            "limits.disk_write_bps",
        ),
        (
            pb.Limits(disk_read_bps=1, io_max_rbps=[pb.DeviceLimit(value=2)]),
            "limits.disk_read_bps",
        ),
    ],
)
def test_a_pair_that_disagrees_is_refused(message, field):
    with pytest.raises(InvalidArgument) as caught:
        convert.limits(message)
    assert caught.value.field == field


def test_a_request_with_everything_is_read_completely():
    request = pb.StartRequest(
        command=pb.Command(name="sh", args=["-c", "true"]),
        limits=convert.limits_message(FULL),
        request_id="r",
        env={"A": "1"},
        working_directory="/tmp",
        user="nobody",
        stdin=b"in",
        timeout=Duration(seconds=1, nanos=500_000_000),
        stop=pb.StopPolicy(signal=2, grace=Duration(seconds=3)),
        name="n",
        labels={"k": "v"},
        output_max_bytes=1 << 20,
        split_stderr=True,
    )
    assert {field.name for field, _ in request.ListFields()} == {
        field.name for field in pb.StartRequest.DESCRIPTOR.fields
    }
    assert convert.job_spec(request) == JobSpec(
        command="sh",
        args=("-c", "true"),
        limits=FULL,
        request_id="r",
        env={"A": "1"},
        working_directory="/tmp",
        user="nobody",
        stdin=b"in",
        timeout=1.5,
        stop=StopPolicy(signal=2, grace=3.0),
        name="n",
        labels={"k": "v"},
        output_max_bytes=1 << 20,
        split_stderr=True,
    )


def test_an_empty_request_has_the_defaults():
    assert convert.job_spec(pb.StartRequest()) == JobSpec(command="")


def test_no_grace_and_zero_grace_differ():
    zero = pb.StartRequest(stop=pb.StopPolicy(grace=Duration()))
    assert convert.job_spec(zero).stop.grace == 0
    assert convert.job_spec(pb.StartRequest(stop=pb.StopPolicy())).stop.grace == 10


@pytest.mark.parametrize("field", ["created_after", "created_before"])
@pytest.mark.parametrize("moment", [{"seconds": 2**62}, {"nanos": -1}, {"nanos": 2**31 - 1}])
def test_a_time_that_there_is_not_is_refused(field, moment):
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        convert.job_filter(pb.ListRequest(**{field: Timestamp(**moment)}))


def test_every_state_and_reason_has_its_number():
    assert set(convert.STATUSES) == set(State)
    assert set(convert.STATUSES.values()) == set(pb.Status.values()) - {pb.STATUS_UNSPECIFIED}
    assert set(convert.REASONS) == {*Reason, None}
    assert set(convert.REASONS.values()) == set(pb.Reason.values())
    assert set(convert.EVENTS) == set(EventType)
    assert set(convert.EVENTS.values()) == set(pb.EventType.values()) - {pb.EVENT_TYPE_UNSPECIFIED}


@pytest.mark.parametrize(
    ("status", "code", "signal"),
    [
        (JobStatus(State.RUNNING), -1, 0),
        (JobStatus(State.EXITED, exit_code=0, reason=Reason.EXITED), 0, 0),
        (JobStatus(State.EXITED, signal=9, reason=Reason.SIGNALED), -1, 9),
    ],
)
def test_an_exit_code_is_minus_one_unless_there_is_one(status, code, signal):
    detail = convert.status_detail(status)
    assert (detail.exit_code, detail.signal) == (code, signal)


RUNNING = JobRecord(
    id="j",
    owner="user_alpha",
    spec=JobSpec(command="sh", env={"SECRET": "hunter2"}, timeout=2.0),
    created_at=1.25,
    started_at=2.5,
    status=JobStatus(State.RUNNING),
    process=Process(boot_id="b", pid=7, start_time=1),
)


def test_a_running_job_has_a_pid_and_no_usage():
    message = convert.job_message(RUNNING, 5)
    assert message.pid == 7
    assert not message.HasField("usage")
    assert not message.HasField("ended_at")
    assert message.output_size == 5
    assert message.started_at.ToNanoseconds() == 2_500_000_000
    assert message.timeout.ToSeconds() == 2


def test_the_values_of_environment_variables_are_not_shown():
    message = convert.job_message(RUNNING, 5)
    assert message.env_names == ["SECRET"]
    assert b"hunter2" not in message.SerializeToString()


def test_usage_that_the_kernel_did_not_report_is_absent():
    finished = replace(
        RUNNING,
        status=JobStatus(State.EXITED, exit_code=0, reason=Reason.EXITED),
        output_size=5,
        ended_at=3.0,
        usage={"cpu_user_us": 0, "of_a_newer_shim": 1},
    )
    usage = convert.job_message(finished, 5).usage
    assert [field.name for field, _ in usage.ListFields()] == ["cpu_user_us"]


def test_an_output_that_is_gone_has_no_size():
    assert not convert.job_message(RUNNING, None).HasField("output_size")


@pytest.mark.parametrize("paused", [True, False])
def test_a_job_says_whether_it_is_paused(paused):
    assert convert.job_message(RUNNING, 5, paused=paused).paused is paused


def test_a_job_that_was_told_to_end_says_so_until_it_has():
    told = replace(RUNNING, stop=AcceptedStop(boot_id="b", signal=15, kill_at=9.0))
    assert convert.job_message(told, 5).stopping
    assert not convert.job_message(RUNNING, 5).stopping
    ended = JobStatus(State.STOPPED, exit_code=0, reason=Reason.STOPPED)
    finished = replace(told, status=ended, output_size=5, ended_at=3.0)
    assert not convert.job_message(finished, 5).stopping


def test_a_sample_of_a_running_job():
    message = convert.sample_message(
        Sample(
            time=2.5,
            status=RUNNING.status,
            usage={"cpu_user_us": 7, "of_a_newer_kernel": 1},
            current={"memory_current": 8, "pids_current": 9},
            paused=True,
        )
    )
    assert message == pb.StatsResponse(
        time=Timestamp(seconds=2, nanos=500_000_000),
        usage=pb.Usage(cpu_user_us=7),
        memory_current=8,
        pids_current=9,
        paused=True,
        status=convert.status_detail(RUNNING.status),
    )


def test_what_is_not_known_at_the_moment_is_absent():
    message = convert.sample_message(Sample(time=2.5, status=RUNNING.status))
    for field in ("memory_current", "memory_swap_current", "pids_current"):
        assert not message.HasField(field)


def test_every_figure_of_a_cgroup_has_a_place_in_the_contract():
    figures = {key for _, keys, _ in cgroup._USAGE for key in keys.values()}
    assert figures == set(pb.Usage.DESCRIPTOR.fields_by_name)
    current = {key for _, keys, _ in cgroup._CURRENT for key in keys.values()}
    assert current <= set(pb.StatsResponse.DESCRIPTOR.fields_by_name)


def test_an_event_and_a_position_without_one():
    event = JobEvent(
        type=EventType.SIGNALED,
        time=2.5,
        job_id="j",
        owner="o",
        name="n",
        status=RUNNING.status,
        user="u",
        signal=10,
    )
    assert convert.watch_message(Told("t", event)) == pb.WatchResponse(
        resume_token="t",
        type=pb.EVENT_TYPE_SIGNALED,
        time=Timestamp(seconds=2, nanos=500_000_000),
        job_id="j",
        owner="o",
        name="n",
        status=convert.status_detail(RUNNING.status),
        user="u",
        signal=10,
    )
    assert convert.watch_message(Told("t")) == pb.WatchResponse(resume_token="t")
