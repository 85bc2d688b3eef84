from __future__ import annotations

from jobworker.cli import figures
from jobworker.rpc.v1 import jobworker_pb2 as pb

NOON = 1_800_000_000
RUNNING = pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1)


def clock(seconds: float) -> str:
    return f"noon{seconds - NOON:+g}"


def sample(at: float = 0, usage: pb.Usage | None = None, **fields) -> pb.StatsResponse:
    made = pb.StatsResponse(usage=usage, status=RUNNING, **fields)
    made.time.FromNanoseconds(round((NOON + at) * 1e9))
    return made


def cells(now: pb.StatsResponse, before: pb.StatsResponse | None = None) -> dict[str, str]:
    """Read a line back by the columns of the header."""
    header, line = figures.header(), figures.line(now, before, clock)
    ends = [header.index(name) + len(name) for name in figures.HEADER[:-1]]
    starts = [0, *ends]
    found = [line[start:end].strip() for start, end in zip(starts, ends, strict=False)]
    return dict(zip(figures.HEADER, [*found, line[ends[-1] :].strip()], strict=True))


def test_a_line_has_the_rates_since_the_one_before():
    before = sample(
        0, pb.Usage(cpu_user_us=0, cpu_system_us=500_000, io_read_bytes=0, io_write_bytes=7)
    )
    now = sample(
        2,
        pb.Usage(
            cpu_user_us=2_000_000, cpu_system_us=1_500_000, io_read_bytes=2**21, io_write_bytes=7
        ),
        memory_current=3 * 2**20,
        pids_current=4,
    )
    assert cells(now, before) == {
        "TIME": "noon+2",
        "CPU": "150.0%",
        "MEMORY": "3 MiB",
        "READ": "1 MiB/s",
        "WRITTEN": "0 B/s",
        "PIDS": "4",
        "STATUS": "running",
    }


def test_what_is_not_known_is_no_zero():
    assert cells(sample(), None) == {
        "TIME": "noon+0",
        **dict.fromkeys(("CPU", "MEMORY", "READ", "WRITTEN", "PIDS"), "-"),
        "STATUS": "running",
    }
    with_cpu = pb.Usage(cpu_user_us=0, cpu_system_us=0)
    found = cells(sample(1, with_cpu), sample(0, with_cpu))
    assert (found["CPU"], found["READ"]) == ("0.0%", "-")


def test_a_clock_that_does_not_advance_gives_no_rate():
    usage = pb.Usage(cpu_user_us=5, cpu_system_us=5)
    for at in (0, -1):
        assert cells(sample(at, usage), sample(0, usage))["CPU"] == "-"


def test_the_last_line_says_how_it_ended():
    end = sample(1)
    end.status.CopyFrom(pb.StatusDetail(status=pb.STATUS_EXITED, reason=pb.REASON_EXITED))
    assert cells(end, sample())["STATUS"] == "exited (0)"


def test_a_paused_job_is_running():
    assert cells(sample(paused=True))["STATUS"] == "running (paused)"


def test_the_largest_figures_fit_their_columns():
    usage = {
        "io_read_bytes": 1023 * 2**30,
        "io_write_bytes": 1023 * 2**30,
        "cpu_user_us": 1_000_000 * 999,
        "cpu_system_us": 0,
    }
    before = sample(0, pb.Usage(**dict.fromkeys(usage, 0)))
    now = sample(1, pb.Usage(**usage), memory_current=1023 * 2**30, pids_current=99_999)
    found = cells(now, before)
    assert found["CPU"] == "99900.0%"
    assert found["MEMORY"] == "1023 GiB"
    assert found["WRITTEN"] == "1023 GiB/s"
    assert found["PIDS"] == "99999"
    assert found["STATUS"] == "running"


def test_one_sample_is_a_block():
    usage = pb.Usage(cpu_user_us=1_500_000, cpu_system_us=500_000)
    text = figures.block(
        sample(3, usage, memory_current=2**20, memory_swap_current=2**21, pids_current=2), clock
    )
    assert text.splitlines() == [
        "status     running",
        "time       noon+3",
        "memory     1 MiB",
        "           2 MiB swap",
        "processes  2",
        "usage      2s CPU, start-up included (1.5s user, 500ms system)",
    ]


def test_a_block_leaves_out_what_is_not_known():
    text = figures.block(sample(), clock)
    assert text.splitlines() == ["status     running", "time       noon+0"]
