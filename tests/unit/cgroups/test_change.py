"""In which order limits in force are changed, and what undoes that."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.cgroups import MAX, CpuMax, DeviceLimit, Limits, change
from jobworker.cgroups.limits import MAX_CPU_TIME, settings
from jobworker.errors import InvalidArgument
from jobworker.testing.cgroup_files import CONTROLLER_FILES, Host, taken

DEFAULTS = {name: text for files in CONTROLLER_FILES.values() for name, text in files.items()}
HOST = Host(page_size=4096)


def write(contents: dict[str, str], file: str, text: str) -> dict[str, str]:
    """Return what the files of a cgroup say after the kernel has taken a write."""
    return {**contents, file: taken(file, text, contents, HOST)}


def with_limits(limits: Limits, contents: dict[str, str] = DEFAULTS) -> dict[str, str]:
    for setting in settings(limits):
        if setting.file != "io.bfq.weight":
            contents = write(contents, setting.file, setting.text)
    return contents


def plan(before: dict[str, str], wanted: Limits) -> list[tuple[str, str]]:
    steps = change.plan(settings(wanted), before)
    return [(step.setting.file, step.setting.text) for step in steps]


def quota(us: int) -> CpuMax:
    return CpuMax(us)


pairs = st.tuples(
    st.one_of(st.just(MAX), st.integers(1000, MAX_CPU_TIME), st.integers(1000, 3000)),
    st.one_of(st.integers(0, MAX_CPU_TIME), st.integers(0, 3000)),
).filter(lambda pair: pair[0] == MAX or (pair[1] <= pair[0] and sum(pair) <= MAX_CPU_TIME))
"""Quota and burst, as the kernel can have them in force together."""


@given(before=pairs, after=pairs)
def test_every_pair_of_quota_and_burst_can_follow_every_other_and_be_undone(before, after):
    contents = DEFAULTS
    for file, text in (("cpu.max", f"{before[0]} 100000"), ("cpu.max.burst", str(before[1]))):
        contents = write(contents, file, text.replace(str(MAX), "max"))
    wanted = Limits(cpu_max=quota(after[0]), cpu_burst_max=after[1])

    steps = change.plan(settings(wanted), contents)
    forth = list(
        accumulate(
            (step.setting for step in steps),
            lambda there, setting: write(there, setting.file, setting.text),
            initial=contents,
        )
    )
    back = list(
        accumulate(
            (step.undo for step in reversed(steps)),
            lambda there, setting: write(there, setting.file, setting.text),
            initial=forth[-1],
        )
    )

    assert forth[-1]["cpu.max.burst"] == f"{after[1]}\n"
    assert back == forth[::-1]


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        ((50_000, 20_000), (10_000, 5_000), "cpu.max.burst"),
        ((50_000, 20_000), (90_000, 60_000), "cpu.max"),
    ],
)
def test_quota_and_burst_are_written_in_the_order_in_which_the_kernel_takes_them(
    before, after, first
):
    contents = with_limits(Limits(cpu_max=quota(before[0]), cpu_burst_max=before[1]))
    wanted = Limits(cpu_max=quota(after[0]), cpu_burst_max=after[1])

    assert plan(contents, wanted)[0][0] == first


def test_memory_max_comes_last_when_it_falls_and_first_when_it_rises():
    contents = with_limits(Limits(memory_max=2**30))
    others = Limits(memory_high=2**20, pids_max=9)

    lower = plan(contents, Limits(memory_max=2**21, memory_high=2**20, pids_max=9))
    higher = plan(contents, Limits(memory_max=MAX, memory_high=2**20, pids_max=9))

    assert lower == [*plan(contents, others), ("memory.max", str(2**21))]
    assert higher == [("memory.max", "max"), *plan(contents, others)]


@pytest.mark.parametrize(
    ("file", "there", "wanted", "undo"),
    [
        ("memory.max", "max", Limits(memory_max=2**20), "max"),
        ("memory.low", "4096", Limits(memory_low=2**20), "4096"),
        ("memory.oom.group", "1", Limits(memory_oom_group=False), "1"),
        ("cpu.max", "max 50000", Limits(cpu_max=quota(9000)), "max 50000"),
        ("io.weight", "default 300", Limits(io_weight=5), "default 300"),
        ("pids.max", "7", Limits(pids_max=MAX), "7"),
        (
            "io.max",
            "254:0 wbps=9 riops=8",
            Limits(io_max_riops=(DeviceLimit("254:0", 5),)),
            "254:0 riops=8",
        ),
        (
            "io.max",
            "254:0 wbps=9",
            Limits(io_max_riops=(DeviceLimit("254:0", 5),)),
            "254:0 riops=max",
        ),
    ],
)
def test_undo_brings_back_what_the_file_said(file, there, wanted, undo):
    contents = write(DEFAULTS, file, there)

    (step,) = [s for s in change.plan(settings(wanted), contents) if s.setting.file == file]
    after = write(contents, file, step.setting.text)

    assert step.undo.text == undo
    assert after != contents
    assert write(after, file, step.undo.text) == contents


def test_exceptions_for_devices_stay_out_of_the_weight_that_is_brought_back():
    contents = {**DEFAULTS, "io.weight": "default 300\n254:0 50\n"}

    step, _ = change.plan(settings(Limits(io_weight=5)), contents)

    assert step.undo.text == "default 300"


# What is possible at all


def test_nothing_given_is_nothing_to_change():
    with pytest.raises(InvalidArgument, match="at least one limit"):
        change.check(Limits(memory_max=2**30), Limits())


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        (Limits(cpu_max=quota(5000)), Limits(cpu_burst_max=5001)),
        (Limits(cpu_max=quota(5000), cpu_burst_max=4000), Limits(cpu_max=quota(3999))),
        (Limits(cpu_max=quota(5000), cpu_burst_max=4000), Limits(cpu_max=quota(MAX))),
    ],
)
def test_quota_and_burst_are_judged_with_the_one_in_force(before, wanted):
    with pytest.raises(InvalidArgument, match="the one in force"):
        change.check(before, wanted)


def test_a_burst_needs_a_quota_in_force_or_given():
    with pytest.raises(InvalidArgument, match="a burst needs a quota"):
        change.check(Limits(), Limits(cpu_burst_max=1000))


@pytest.mark.parametrize(
    "wanted",
    [
        Limits(cpu_burst_max=5000),
        Limits(cpu_max=quota(4000)),
        Limits(cpu_max=quota(1000), cpu_burst_max=1000),
        Limits(cpu_max=quota(MAX), cpu_burst_max=0),
        Limits(memory_max=MAX),
    ],
)
def test_what_fits_what_is_in_force_is_possible(wanted):
    change.check(Limits(cpu_max=quota(5000), cpu_burst_max=4000), wanted)


def test_a_pair_given_together_that_is_impossible_is_not_blamed_on_what_is_in_force():
    with pytest.raises(InvalidArgument) as caught:
        change.check(Limits(), Limits(cpu_max=quota(1000), cpu_burst_max=2000))
    assert "in force" not in str(caught.value)


def test_what_somebody_else_has_put_in_force_is_not_judged():
    odd = Limits(cpu_burst_max=1000)  # A burst without a quota, which the kernel takes.

    change.check(odd, Limits(memory_max=2**30))


def test_what_is_not_given_stays():
    before = Limits(memory_max=2**30, pids_max=5)

    assert change.merged(before, Limits(pids_max=6)) == Limits(memory_max=2**30, pids_max=6)
