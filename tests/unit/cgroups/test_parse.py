"""Kernel text to values, on text that kernels have written."""

from __future__ import annotations

import pytest

from jobworker.cgroups import parse
from jobworker.cgroups.parse import MAX, MalformedText

IO_STAT = """\
254:0 rbytes=2097152 wbytes=4096 rios=12 wios=1 dbytes=0 dios=0
8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=77 depth=max
"""
PRESSURE = """\
some avg10=0.00 avg60=1.25 avg300=0.40 total=123456
full avg10=0.00 avg60=0.00 avg300=0.00 total=99
"""
MEMORY_EVENTS = "low 0\nhigh 0\nmax 41\noom 1\noom_kill 2\noom_group_kill 0\n"


@pytest.mark.parametrize(("text", "number"), [("max\n", MAX), ("0\n", 0), ("4096\n", 4096)])
def test_value(text: str, number: int):
    assert parse.value(text, "memory.max") == number


@pytest.mark.parametrize("text", ["", "\n", "-1\n", "1.5\n", "1 2\n", "maximum\n", "٣\n"])
def test_value_that_is_none_names_file_and_line(text: str):
    with pytest.raises(MalformedText) as caught:
        parse.value(text, "memory.max")

    assert str(caught.value) == f"memory.max: cannot understand {text.strip()!r}"


def test_values_of_an_empty_file_are_none():
    assert parse.values("", "cgroup.procs") == []
    assert parse.values("12\n7\n12\n", "cgroup.procs") == [12, 7, 12]


def test_words():
    assert parse.words("cpu io memory\n") == {"cpu", "io", "memory"}
    assert parse.words("\n") == frozenset()


def test_flat_keyed():
    assert parse.flat_keyed(MEMORY_EVENTS, "memory.events")["oom_kill"] == 2


@pytest.mark.parametrize("line", ["populated", "populated yes", "populated 1 2"])
def test_flat_keyed_names_the_offending_line(line: str):
    with pytest.raises(MalformedText, match=r"^cgroup\.events: "):
        parse.flat_keyed(f"frozen 0\n{line}\n", "cgroup.events")


def test_nested_keyed():
    assert parse.nested_keyed("8:16 rbps=2097152 wbps=max riops=max wiops=120\n", "io.max") == {
        "8:16": {"rbps": "2097152", "wbps": "max", "riops": "max", "wiops": "120"}
    }


def test_nested_keyed_needs_a_key_first():
    with pytest.raises(MalformedText):
        parse.nested_keyed("rbps=1 8:16\n", "io.max")


def test_io_totals_add_up_devices():
    assert parse.io_totals(IO_STAT, "io.stat") == {
        "rbytes": 2097153,
        "wbytes": 4098,
        "rios": 15,
        "wios": 5,
    }


def test_io_totals_of_no_device_are_zero():
    assert set(parse.io_totals("", "io.stat").values()) == {0}


def test_io_totals_survive_devices_without_a_line_of_their_own():
    text = "7:1 7:0 8:0 rbytes=10 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"

    assert parse.io_totals(text, "io.stat")["rbytes"] == 10


def test_default_weight_ignores_devices():
    assert parse.default_weight("default 100\n8:16 200\n", "io.weight") == 100


def test_default_weight_must_be_there():
    with pytest.raises(MalformedText):
        parse.default_weight("8:16 200\n", "io.weight")


def test_cpu_max():
    assert parse.cpu_max("max 100000\n", "cpu.max") == (MAX, 100_000)
    assert parse.cpu_max("50000 20000\n", "cpu.max") == (50_000, 20_000)


@pytest.mark.parametrize("text", ["", "max", "1 2 3", "a b"])
def test_cpu_max_that_is_none(text: str):
    with pytest.raises(MalformedText):
        parse.cpu_max(text, "cpu.max")


def test_stall_total_is_that_of_some():
    assert parse.stall_total(PRESSURE, "io.pressure") == 123_456
    assert parse.stall_total("", "io.pressure") is None
