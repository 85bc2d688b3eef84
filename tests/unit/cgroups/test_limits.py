"""Limits to text, and back."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.cgroups.limits import (
    DEFAULT_WEIGHT,
    IO_MAX_LIMITS,
    MAX,
    MAX_CPU_TIME,
    MAX_PIDS,
    SMALLEST_PAGE,
    TABLE,
    CpuMax,
    DeviceLimit,
    Limits,
    Setting,
    from_bfq_weight,
    holds,
    read_back,
    settings,
    to_bfq_weight,
)
from jobworker.cgroups.parse import MalformedText
from jobworker.errors import InvalidArgument
from jobworker.testing.cgroup_files import CONTROLLER_FILES, Host, taken

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

PAGE = 4096
DEVICES = ("8:0", "8:16", "254:0")
SEED_FLAGS = (
    "--memory-min",
    "--memory-low",
    "--memory-high",
    "--memory-max",
    "--cpu-weight",
    "--cpu-max",
    "--cpu-burst-max",
    "--io-weight",
    "--io-max-rbps",
    "--io-max-wbps",
    "--io-max-riops",
    "--io-max-wiops",
)
"""The flags of `jobworker-cli start` that the first design named."""


def sizes(low: int) -> SearchStrategy[int]:
    return st.just(MAX) | st.integers(low, MAX) | st.integers(low, 2**44)


RATES = st.just(MAX) | st.integers(2, 2**40)
SOME_DEVICES = [some for count in (1, 2, 3) for some in permutations(DEVICES, count)]


@st.composite
def device_limits(draw: st.DrawFn) -> tuple[DeviceLimit, ...]:
    devices = draw(st.sampled_from(SOME_DEVICES))
    return tuple(DeviceLimit(device, draw(RATES)) for device in devices)


VALUES: dict[str, SearchStrategy[object]] = {
    "memory_min": sizes(0),
    "memory_low": sizes(0),
    "memory_high": sizes(SMALLEST_PAGE),
    "memory_max": sizes(SMALLEST_PAGE),
    "memory_swap_max": sizes(0),
    "memory_oom_group": st.booleans(),
    "cpu_weight": st.integers(1, 10_000),
    "cpu_max": st.builds(
        CpuMax,
        st.just(MAX) | st.integers(1000, MAX_CPU_TIME // 2),
        st.integers(1000, 1_000_000),
    ),
    "io_weight": st.integers(1, 10_000),
    "io_max_rbps": device_limits(),
    "io_max_wbps": device_limits(),
    "io_max_riops": device_limits(),
    "io_max_wiops": device_limits(),
    "pids_max": st.just(MAX) | st.integers(1, MAX_PIDS),
}
"""What each limit can be; what cpu_burst_max can be depends on cpu_max."""


@st.composite
def valid_limits(draw: st.DrawFn) -> Limits:
    present = draw(st.integers(0, 2 ** (len(VALUES) + 1) - 1))  # a bit for each: draws are dear
    found = {
        name: draw(values)
        for bit, (name, values) in enumerate(VALUES.items(), 1)
        if present >> bit & 1
    }
    if present & 1:
        cpu_max = found.get("cpu_max")
        bounded = isinstance(cpu_max, CpuMax) and cpu_max.quota_us != MAX
        found["cpu_burst_max"] = draw(st.integers(0, cpu_max.quota_us if bounded else 0))
    return Limits(**found)


def fresh() -> dict[str, str]:
    """Return the files of a new cgroup with every controller."""
    return {name: text for files in CONTROLLER_FILES.values() for name, text in files.items()}


def written(limits: Limits, page_size: int = PAGE) -> dict[str, str]:
    """Return a new cgroup's files after the settings were written in their order."""
    contents, host = fresh(), Host(page_size, frozenset(DEVICES))
    for setting in settings(limits):
        contents[setting.file] = taken(setting.file, setting.text, contents, host)
    return contents


def rounded(size: int | None, page_size: int) -> int | None:
    if size is None or size >= 2**63 - page_size:
        return size and MAX
    return size // page_size * page_size


def kept(limits: Limits, page_size: int = PAGE) -> Limits:
    """Return the limits as a kernel with pages of that size keeps them: defaults read as None."""

    def without(value: object, default: object) -> object:
        return None if value == default else value

    def devices(found: tuple[DeviceLimit, ...], ceiling: int) -> tuple[DeviceLimit, ...]:
        return tuple(limit for limit in found if limit.value < ceiling)

    return replace(
        limits,
        memory_min=without(rounded(limits.memory_min, page_size), 0),
        memory_low=without(rounded(limits.memory_low, page_size), 0),
        memory_high=without(rounded(limits.memory_high, page_size), MAX),
        memory_max=without(rounded(limits.memory_max, page_size), MAX),
        memory_swap_max=without(rounded(limits.memory_swap_max, page_size), MAX),
        memory_oom_group=limits.memory_oom_group or None,
        cpu_weight=without(limits.cpu_weight, DEFAULT_WEIGHT),
        cpu_max=without(limits.cpu_max, CpuMax(MAX)),
        cpu_burst_max=limits.cpu_burst_max or None,
        io_weight=without(limits.io_weight, DEFAULT_WEIGHT),
        io_max_rbps=devices(limits.io_max_rbps, MAX),
        io_max_wbps=devices(limits.io_max_wbps, MAX),
        io_max_riops=devices(limits.io_max_riops, 2**32 - 1),
        io_max_wiops=devices(limits.io_max_wiops, 2**32 - 1),
        pids_max=without(limits.pids_max, MAX),
    )


def in_order(limits: Limits) -> Limits:
    return replace(
        limits,
        **{n: tuple(sorted(getattr(limits, n), key=lambda d: d.device)) for n in IO_MAX_LIMITS},
    )


def test_every_limit_has_a_row_and_every_row_a_limit():
    assert {row.limit for row in TABLE} == {field.name for field in fields(Limits)}


def test_every_flag_of_the_first_design_has_a_row():
    assert set(SEED_FLAGS) <= {f"--{row.limit.replace('_', '-')}" for row in TABLE}


def test_every_file_belongs_to_its_controller():
    for row in TABLE:
        assert row.file in CONTROLLER_FILES[row.controller]


def test_every_row_says_which_kernel_has_the_file():
    assert all(row.needs.startswith("Linux ") for row in TABLE)


def test_no_limits_write_nothing():
    assert settings(Limits()) == ()


def test_settings():
    limits = Limits(
        memory_high=2**30,
        memory_max=MAX,
        memory_oom_group=True,
        cpu_max=CpuMax(50_000),
        cpu_burst_max=10_000,
        cpu_weight=50,
        io_weight=1200,
        io_max_wbps=(DeviceLimit("8:0", 10**6), DeviceLimit("8:16", MAX)),
        pids_max=7,
    )

    assert [(s.limit, s.controller, s.file, s.text) for s in settings(limits)] == [
        ("memory_high", "memory", "memory.high", "1073741824"),
        ("memory_max", "memory", "memory.max", "max"),
        ("memory_oom_group", "memory", "memory.oom.group", "1"),
        ("cpu_weight", "cpu", "cpu.weight", "50"),
        ("cpu_max", "cpu", "cpu.max", "50000 100000"),
        ("cpu_burst_max", "cpu", "cpu.max.burst", "10000"),
        ("io_weight", "io", "io.weight", "default 1200"),
        ("io_weight", "io", "io.bfq.weight", "default 200"),
        ("io_max_wbps", "io", "io.max", "8:0 wbps=1000000"),
        ("io_max_wbps", "io", "io.max", "8:16 wbps=max"),
        ("pids_max", "pids", "pids.max", "7"),
    ]


def test_false_and_zero_are_written():
    limits = Limits(memory_oom_group=False, memory_swap_max=0, memory_min=0)

    assert {s.file: s.text for s in settings(limits)} == {
        "memory.min": "0",
        "memory.swap.max": "0",
        "memory.oom.group": "0",
    }


@given(limits=valid_limits(), page_size=st.sampled_from([4096, 16384, 65536]))
def test_what_passes_the_check_is_taken_and_holds(limits: Limits, page_size: int):
    limits.check()

    contents = written(limits, page_size)

    for setting in settings(limits):
        assert holds(setting, contents[setting.file], page_size)


@given(limits=valid_limits())
def test_limits_are_read_back_as_the_kernel_keeps_them(limits: Limits):
    contents = written(limits)

    assert in_order(read_back(contents.get)) == in_order(kept(limits))


@given(limits=valid_limits())
def test_what_was_read_back_can_be_written_again(limits: Limits):
    found = read_back(written(limits).get)

    found.check()

    assert in_order(read_back(written(found).get)) == in_order(found)


def test_every_limit_is_among_those_that_are_drawn():
    assert {each.name for each in fields(Limits)} == {*VALUES, "cpu_burst_max"}


def test_fresh_cgroup_has_no_limits():
    assert read_back(fresh().get) == Limits()


def test_missing_files_have_no_limits():
    assert read_back(lambda _: None) == Limits()


def test_io_weight_is_read_from_bfq_where_that_is_all_there_is():
    contents = {"io.bfq.weight": "default 200\n"}

    assert read_back(contents.get).io_weight == 1200


def test_bfq_weights_round_trip():
    weights = range(1, 1001)

    assert [to_bfq_weight(from_bfq_weight(weight)) for weight in weights] == list(weights)


def test_weights_fill_the_range_of_bfq():
    assert [to_bfq_weight(w) for w in (1, 99, 100, 10_000)] == [1, 99, 100, 1000]


@pytest.mark.parametrize(
    ("limit", "file", "text", "content"),
    [
        ("memory_max", "memory.max", "8192", "max\n"),
        ("memory_max", "memory.max", "8192", "4096\n"),
        ("memory_max", "memory.max", "max", "8192\n"),
        ("memory_oom_group", "memory.oom.group", "1", "0\n"),
        ("cpu_weight", "cpu.weight", "200", "100\n"),
        ("cpu_max", "cpu.max", "50000 100000", "max 100000\n"),
        ("cpu_max", "cpu.max", "50000 100000", "50000 50000\n"),
        ("cpu_burst_max", "cpu.max.burst", "1000", "0\n"),
        ("io_weight", "io.weight", "default 200", "default 100\n8:0 200\n"),
        ("io_max_rbps", "io.max", "8:0 rbps=1000", ""),
        ("io_max_rbps", "io.max", "8:0 rbps=1000", "8:16 rbps=1000 wbps=max\n"),
        ("io_max_rbps", "io.max", "8:0 rbps=1000", "8:0 rbps=max wbps=1000\n"),
        ("io_max_rbps", "io.max", "8:0 rbps=max", "8:0 rbps=1000 wbps=max\n"),
        ("pids_max", "pids.max", "10", "max\n"),
    ],
)
def test_other_content_does_not_hold(limit: str, file: str, text: str, content: str):
    setting = Setting(limit, file.partition(".")[0], file, text)

    assert not holds(setting, content, PAGE)


def test_content_that_is_no_limit_is_malformed():
    with pytest.raises(MalformedText, match=r"memory\.max"):
        holds(Setting("memory_max", "memory", "memory.max", "8192"), "lots\n", PAGE)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(memory_min=0, memory_low=0, memory_swap_max=0),
        Limits(memory_max=SMALLEST_PAGE, memory_high=MAX),
        Limits(memory_min=2**40, memory_max=2**20),
        Limits(cpu_weight=1, io_weight=10_000),
        Limits(cpu_max=CpuMax(1000, 1000)),
        Limits(cpu_max=CpuMax(MAX, 1_000_000), cpu_burst_max=0),
        Limits(cpu_max=CpuMax(400_000, 100_000), cpu_burst_max=400_000),
        Limits(io_max_rbps=(DeviceLimit("", 1), DeviceLimit("/dev/vda", 2))),
        Limits(pids_max=1),
        Limits(pids_max=MAX),
    ],
)
def test_legitimate_limits_pass(limits: Limits):
    limits.check()


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        ("memory_min", Limits(memory_min=-1)),
        ("memory_low", Limits(memory_low=MAX + 1)),
        ("memory_high", Limits(memory_high=0)),
        ("memory_max", Limits(memory_max=SMALLEST_PAGE - 1)),
        ("memory_swap_max", Limits(memory_swap_max=-1)),
        ("cpu_weight", Limits(cpu_weight=0)),
        ("cpu_weight", Limits(cpu_weight=10_001)),
        ("io_weight", Limits(io_weight=0)),
        ("io_weight", Limits(io_weight=10_001)),
        ("cpu_max", Limits(cpu_max=CpuMax(999))),
        ("cpu_max", Limits(cpu_max=CpuMax(MAX_CPU_TIME + 1))),
        ("cpu_max", Limits(cpu_max=CpuMax(5000, 999))),
        ("cpu_max", Limits(cpu_max=CpuMax(MAX, 1_000_001))),
        ("cpu_burst_max", Limits(cpu_burst_max=1000)),
        ("cpu_burst_max", Limits(cpu_max=CpuMax(MAX), cpu_burst_max=1000)),
        ("cpu_burst_max", Limits(cpu_max=CpuMax(5000), cpu_burst_max=5001)),
        ("cpu_burst_max", Limits(cpu_max=CpuMax(5000), cpu_burst_max=-1)),
        ("cpu_burst_max", Limits(cpu_max=CpuMax(MAX_CPU_TIME), cpu_burst_max=1)),
        ("io_max_rbps", Limits(io_max_rbps=(DeviceLimit("8:0", 0),))),
        ("io_max_wbps", Limits(io_max_wbps=(DeviceLimit("", -1),))),
        ("io_max_riops", Limits(io_max_riops=(DeviceLimit("8:0", 5), DeviceLimit("8:0", 6)))),
        ("io_max_wiops", Limits(io_max_wiops=(DeviceLimit("", 5), DeviceLimit("", 5)))),
        ("pids_max", Limits(pids_max=0)),
        ("pids_max", Limits(pids_max=MAX_PIDS + 1)),
    ],
)
def test_impossible_limit_is_refused_by_name(field: str, limits: Limits):
    with pytest.raises(InvalidArgument) as caught:
        limits.check()

    assert caught.value.field == f"limits.{field}"


@pytest.mark.parametrize(
    ("advice", "limits"),
    [
        ("memory_high without memory_max", Limits(memory_high=2**20)),
        ("memory_high without memory_max", Limits(memory_high=2**20, memory_max=MAX)),
        ("memory_high is above", Limits(memory_high=2**21, memory_max=2**20)),
        ("memory_low is below", Limits(memory_low=2**20, memory_min=2**21)),
        ("memory_min protects more", Limits(memory_min=2**21, memory_max=2**20)),
        ("memory_low protects more", Limits(memory_low=2**21, memory_max=2**20)),
    ],
)
def test_doubtful_limits_are_advised_against(advice: str, limits: Limits):
    (warning,) = limits.warnings()

    assert advice in warning


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(memory_high=MAX),
        Limits(memory_min=2**10, memory_low=2**20, memory_high=2**21, memory_max=2**22),
    ],
)
def test_sound_limits_need_no_advice(limits: Limits):
    assert limits.warnings() == ()
