from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.cli.render import job_status, status_line, status_text, to_json
from jobworker.job.outcome import conclude
from jobworker.job.state import State
from jobworker.rpc.convert import status_detail
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.shim.wire import ExitRecord

NOON = 1_800_000_000
END = {
    "job_id": "id",
    "boot_id": "boot",
    "pid": 1,
    "started_at": 0.0,
    "ended_at": 1.0,
    "runtime": 1.0,
    "output_size": 0,
    "usage": {},
}


def clock(seconds: float) -> str:
    return f"noon{seconds - NOON:+g}"


def job(**fields) -> pb.Job:
    made = pb.Job(
        id="id",
        command=pb.Command(name="sh", args=["-c", "echo hi"]),
        status=pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1),
        owner="user_alpha",
        **fields,
    )
    made.created_at.FromSeconds(NOON)
    made.started_at.FromSeconds(NOON)
    return made


def shown(job: pb.Job, now: float = NOON + 90) -> dict[str, list[str]]:
    """Read the aligned text back: key → lines."""
    rows: dict[str, list[str]] = {}
    key = ""
    response = pb.StatusResponse(status=job.status, job=job)
    for line in status_text(response, now, clock).splitlines():
        key = line[:10].rstrip() or key
        assert line[10] == " ", "every value begins in one column"
        rows.setdefault(key, []).append(line[11:])
    return rows


def test_a_running_job():
    assert shown(job(pid=42, output_size=1536)) == {
        "job": ["id"],
        "status": ["running"],
        "command": ["sh -c 'echo hi'"],
        "owner": ["user_alpha"],
        "created": ["noon+0 (1m ago)"],
        "started": ["noon+0 (1m ago)"],
        "run time": ["1m30s so far"],
        "pid": ["42"],
        "output": ["1.5 KiB"],
    }


def test_a_finished_job_has_its_run_time_and_its_usage():
    ended = job(
        usage=pb.Usage(
            cpu_user_us=1_500_000,
            cpu_system_us=500_000,
            memory_peak=12 * 2**20,
            pids_peak=3,
            io_read_bytes=0,
            io_read_operations=0,
            io_write_bytes=4096,
            oom_kills=1,
            cpu_pressure_us=1_000,
            memory_pressure_us=0,
        )
    )
    ended.ended_at.FromNanoseconds((NOON + 1) * 10**9 + 250_000_000)
    rows = shown(ended)
    assert rows["run time"] == ["1.25s"]
    assert rows["usage"] == [
        "2s CPU, start-up included (1.5s user, 500ms system)",
        "12 MiB memory at most",
        "3 processes and threads at most",
        "0 B read in 0 operations",
        "4 KiB written",
        "1 processes killed: out of memory",
        "1ms waiting for CPU",
    ]


def test_what_limits_have_done_to_a_job_is_shown():
    rows = shown(
        job(
            usage=pb.Usage(
                memory_swap_peak=2**20,
                cpu_throttled_periods=3,
                cpu_throttled_us=1_500_000,
                cpu_burst_periods=2,
                cpu_burst_us=1000,
                memory_high_events=4,
                memory_max_events=0,
                pids_max_events=5,
            )
        )
    )
    assert rows["usage"] == [
        "1 MiB swap at most",
        "1.5s held up by cpu-max in 3 periods",
        "1ms beyond cpu-max in 2 periods",
        "4 times held back by memory-high",
        "5 times held back by pids-max",
    ]


def test_a_paused_job_is_running():
    assert shown(job(paused=True))["status"] == ["running (paused)"]


def test_what_the_kernel_did_not_report_is_not_shown_as_zero():
    assert "usage" not in shown(job(usage=pb.Usage()))


def test_what_was_asked_for_is_shown():
    asked = job(
        name="nightly",
        user="nobody",
        working_directory="/srv",
        env_names=["A", "B"],
        labels={"b": "2", "a": "1"},
        limits=pb.Limits(memory_max=2**29),
        warnings=["memory.high without memory.max"],
        stop=pb.StopPolicy(signal=2),
    )
    asked.timeout.FromSeconds(5400)
    asked.stop.grace.FromSeconds(30)
    rows = shown(asked)
    assert rows["name"] == ["nightly"]
    assert rows["user"] == ["nobody"]
    assert rows["directory"] == ["/srv"]
    assert rows["variables"] == ["A, B"]
    assert rows["labels"] == ["a=1", "b=2"]
    assert rows["limits"] == ["memory-max 512 MiB"]
    assert rows["warnings"] == ["memory.high without memory.max"]
    assert rows["timeout"] == ["1h30m"]
    assert rows["stop"] == ["SIGINT, then SIGKILL after 30s"]


def test_what_a_job_is_called_cannot_move_the_cursor():
    bad = "\x1b[2J\n"
    hostile = job(
        name=bad,
        user=bad,
        working_directory=bad,
        env_names=[bad],
        labels={bad: bad},
        warnings=[bad],
        limits=pb.Limits(io_max_rbps=[pb.DeviceLimit(device=bad, value=1)]),
    )
    hostile.id = hostile.owner = bad
    hostile.command.args.append(bad)
    hostile.status.message = bad
    text = status_text(pb.StatusResponse(status=hostile.status, job=hostile), NOON, clock)
    assert all(line.isprintable() for line in text.splitlines())
    assert "[2J" in text


def test_a_clock_that_is_behind_shows_no_age_and_no_negative_time():
    rows = shown(job(), now=NOON - 100)
    assert rows["created"] == ["noon+0"]
    assert rows["run time"] == ["0s so far"]


@pytest.mark.parametrize(
    ("under_way", "line"),
    [
        ({}, "running"),
        ({"stopping": True}, "running (stopping)"),
        ({"stopping": True, "paused": True}, "running (stopping, paused)"),
    ],
)
def test_what_is_under_way_stands_beside_the_status(under_way, line):
    detail = pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1)
    assert job_status(pb.Job(**under_way), detail) == line


@pytest.mark.parametrize(
    ("detail", "line"),
    [
        (pb.StatusDetail(status=pb.STATUS_PENDING, exit_code=-1), "pending"),
        (
            pb.StatusDetail(status=pb.STATUS_EXITED, exit_code=3, reason=pb.REASON_EXITED),
            "exited (3)",
        ),
        (pb.StatusDetail(status=pb.STATUS_EXITED), "exited (0)"),
        (
            pb.StatusDetail(
                status=pb.STATUS_EXITED, exit_code=-1, signal=11, reason=pb.REASON_SIGNALED
            ),
            "exited (SIGSEGV)",
        ),
        (
            pb.StatusDetail(
                status=pb.STATUS_EXITED, exit_code=-1, signal=9, reason=pb.REASON_OUT_OF_MEMORY
            ),
            "exited (out of memory, SIGKILL)",
        ),
        (
            pb.StatusDetail(status=pb.STATUS_EXITED, exit_code=1, reason=pb.REASON_OUT_OF_MEMORY),
            "exited (out of memory, exit code 1)",
        ),
        (
            pb.StatusDetail(
                status=pb.STATUS_STOPPED, exit_code=-1, signal=15, reason=pb.REASON_TIMED_OUT
            ),
            "stopped (timed out, SIGTERM)",
        ),
        (
            pb.StatusDetail(status=pb.STATUS_STOPPED, exit_code=5, reason=pb.REASON_STOPPED),
            "stopped (exit code 5)",
        ),
        (
            pb.StatusDetail(status=pb.STATUS_STOPPED, exit_code=0, reason=pb.REASON_TIMED_OUT),
            "stopped (timed out, exit code 0)",
        ),
        (
            pb.StatusDetail(status=pb.STATUS_STOPPED, exit_code=-1, reason=pb.REASON_STOPPED),
            "stopped",
        ),
        (
            pb.StatusDetail(status=pb.STATUS_LOST, exit_code=-1, reason=pb.REASON_LOST),
            "lost",
        ),
        (pb.StatusDetail(status=99, exit_code=-1), "unknown (99)"),  # type: ignore[arg-type]
    ],
)
def test_a_status_in_a_word_or_two(detail, line):
    assert status_line(detail) == line


@pytest.mark.parametrize(
    ("state", "stop_signal", "line"),
    [
        (pb.STATUS_STOPPED, 15, "stopped (SIGKILL after the grace period)"),
        (pb.STATUS_STOPPED, 9, "stopped (SIGKILL)"),
        (pb.STATUS_STOPPED, 0, "stopped (SIGKILL)"),
        (pb.STATUS_EXITED, 15, "exited (SIGKILL)"),
    ],
)
def test_a_kill_is_said_to_be_the_end_of_the_grace_where_that_is_known(state, stop_signal, line):
    assert status_line(pb.StatusDetail(status=state, exit_code=-1, signal=9), stop_signal) == line


@pytest.mark.parametrize(
    ("end", "lines"),
    [
        (ExitRecord(**END, signal=15, stopped=True), ["stopped (SIGTERM)"]),
        (ExitRecord(**END, signal=11), ["exited (SIGSEGV)"]),
        (ExitRecord(**END, signal=11, core_dumped=True), ["exited (SIGSEGV)", "core dumped"]),
        (ExitRecord(**END, exit_code=0, cgroup_error="EBUSY"), ["exited (0)", "EBUSY"]),
    ],
)
def test_an_end_is_said_once_and_what_it_left_beside_it(end, lines):
    ended = job()
    ended.status.CopyFrom(status_detail(conclude(State.RUNNING, end)))
    assert shown(ended)["status"] == lines


def test_json_has_the_names_and_the_structure_of_the_wire_contract():
    response = pb.StatusResponse(status=pb.StatusDetail(status=pb.STATUS_EXITED), job=job())
    response.job.timeout.FromMilliseconds(1500)
    response.job.limits.memory_max = 2**64 - 1
    response.job.labels["a"] = "1"
    read = json.loads(to_json(response))
    assert read["status"]["status"] == "STATUS_EXITED"
    assert read["status"]["exit_code"] == 0, "a zero says something and must be there"
    assert read["job"]["command"] == {"name": "sh", "args": ["-c", "echo hi"]}
    assert read["job"]["created_at"] == "2027-01-15T08:00:00Z"
    assert read["job"]["timeout"] == "1.500s"
    assert read["job"]["limits"] == {
        "memory_max": 2**64 - 1,
    }, "a limit that is not set is none"
    assert read["job"]["warnings"] == []
    assert read["job"]["labels"] == {"a": "1"}
    assert "ended_at" not in read["job"]
    assert "usage" not in read["job"]


@pytest.mark.parametrize("indent", [2, None])
def test_json_cannot_move_the_cursor_nor_turn_text_around_and_is_the_same_value(indent):
    # An escape, a right-to-left override, C1 and tag characters, DEL; and text that is to be read.
    bad = "\x1b[2J\n \u202e \x9b \U000e0041 \x7f \u2028"
    hostile = job(name=f"{bad} Ünïcödé 漢字 🎉", labels={bad: bad})
    hostile.command.args.append(bad)
    text = to_json(hostile, indent)
    assert all(line.isprintable() for line in text.split("\n"))
    assert ("\n" in text) == (indent is not None)
    assert "Ünïcödé 漢字 🎉" in text
    read = json.loads(text)
    assert read["name"] == hostile.name
    assert read["labels"] == {bad: bad}
    assert read["command"]["args"][-1] == bad


def test_json_shows_enums_of_a_newer_server_by_number():
    detail = pb.StatusDetail(status=99)  # type: ignore[arg-type]
    assert json.loads(to_json(detail))["status"] == 99


@given(st.binary(), st.integers(0, 2**64 - 1))
def test_json_carries_bytes_as_base64(output, offset):
    line = to_json(pb.OutputResponse(output=output, offset=offset), indent=None)
    assert "\n" not in line
    read = json.loads(line)
    assert pb.OutputResponse(output=base64.b64decode(read["output"])).output == output
    assert read["offset"] == offset
