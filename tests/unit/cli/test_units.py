from __future__ import annotations

import signal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.cgroups import limits
from jobworker.cli import units
from jobworker.cli.units import MAX


def test_max_is_the_wire_contracts():
    assert limits.MAX == MAX


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1000B", 1000),
        ("512M", 512 * 2**20),
        ("1G", 2**30),
        ("1GiB", 2**30),
        ("1gib", 2**30),
        ("1.5G", 3 * 2**29),
        (".5K", 512),
        ("0.1K", 102),
        ("16383P", 16383 * 2**50),
        ("max", MAX),
    ],
)
def test_sizes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "12Q",
        "1GB",
        "M",
        "1,5G",
        "1 G",
        "1e3",
        "infinity",
        "MAX",
        "1..5G",
        "0x10",
        "٣",
        "1\n",
    ],
)
def test_what_is_no_size_is_named_with_what_is(text):
    with pytest.raises(ValueError, match="512M") as refusal:
        units.parse_size(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["16E", "18446744073709551615", "9" * 30])
def test_a_size_too_large_for_the_wire_is_refused_instead_of_meaning_max(text):
    with pytest.raises(ValueError, match="write max"):
        units.parse_size(text)


@given(st.integers(0, MAX - 1))
def test_bytes_are_read_as_they_are(size):
    assert units.parse_size(str(size)) == size


@given(st.integers(0, MAX - 1), st.sampled_from(["K", "M", "G", "T", "P", "E"]), st.booleans())
def test_binary_prefixes_multiply(number, prefix, long):
    size = number * 1024 ** ("KMGTPE".index(prefix) + 1)
    text = f"{number}{prefix}{'iB' if long else ''}"
    if size >= MAX:
        with pytest.raises(ValueError, match="too large"):
            units.parse_size(text)
    else:
        assert units.parse_size(text) == size


@given(st.integers(0, MAX))
def test_a_shown_size_reads_back_within_its_precision(size):
    shown = units.format_size(size).replace(" ", "")
    assert len(shown) <= len("1023.9MiB")
    if shown == "16EiB":  # rounded up beyond what a uint64 holds
        assert size > 15.9 * 2**60
        return
    assert abs(units.parse_size(shown) - size) <= size / 10


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1 MiB"),
        (512 * 2**20, "512 MiB"),
        (MAX, "max"),
    ],
)
def test_sizes_are_shown_in_binary_units(size, text):
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("500", 500), ("10k", 10_000), ("1.5k", 1500), ("2M", 2_000_000), ("max", MAX)],
)
def test_counts_have_decimal_prefixes(text, count):
    assert units.parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "-1", "1G", "k", "1.5", "1.0001k", "10 k", "99999999999999999999"]
)
def test_what_is_no_count_is_named(text):
    with pytest.raises(ValueError, match=r"count|whole|large") as refusal:
        units.parse_count(text)
    assert repr(text) in str(refusal.value)


@given(st.integers(1, 10_000))
def test_weights_are_whole_numbers(weight):
    assert units.parse_weight(str(weight)) == weight


@pytest.mark.parametrize("text", ["", "0", "10001", "-5", "1.5", "max", "123456", "١"])
def test_weights_out_of_range_are_named(text):
    with pytest.raises(ValueError, match="from 1 to 10000"):
        units.parse_weight(text)


@pytest.mark.parametrize(
    ("text", "device", "size"),
    [
        ("10M", "", 10 * 2**20),
        ("/dev/vda:10M", "/dev/vda", 10 * 2**20),
        ("8:16:1K", "8:16", 1024),
        ("/dev/disk/by-path/pci-0000:00:1f.2:max", "/dev/disk/by-path/pci-0000:00:1f.2", MAX),
    ],
)
def test_the_last_colon_divides_device_and_value(text, device, size):
    assert units.parse_device_size(text) == (device, size)


def test_a_device_may_have_a_count():
    assert units.parse_device_count("/dev/vda:10k") == ("/dev/vda", 10_000)


@pytest.mark.parametrize("text", [":10M", "/dev/vda:", "/dev/vda", "/dev/vda:10X"])
def test_a_device_without_a_value_or_a_value_without_a_device_is_refused(text):
    with pytest.raises(ValueError, match=r"size|device"):
        units.parse_device_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5", Fraction(3, 2)),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("500ms", Fraction(1, 2)),
        ("20us", Fraction(20, 1_000_000)),
        ("1m1s1ms", 60 + 1 + Fraction(1, 1000)),
    ],
)
def test_durations(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1x", "1h 30m", "1h30", "inf", "nan", "1e9", "1M", "s1"]
)
def test_what_is_no_duration_is_named_with_what_is(text):
    with pytest.raises(ValueError, match="1h30m") as refusal:
        units.parse_duration(text)
    assert repr(text) in str(refusal.value)


def test_a_duration_longer_than_the_wire_carries_is_refused():
    with pytest.raises(ValueError, match="10,000 years"):
        units.parse_duration("315576000001")


@given(st.fractions(0, 10**9))
def test_a_shown_duration_reads_back_within_its_precision(seconds):
    shown = units.parse_duration(units.format_duration(seconds))
    assert abs(shown - seconds) <= max(seconds / 100, Fraction(1, 1_000_000))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.000_005, "5us"),
        (0.34, "340ms"),
        (1.234, "1.23s"),
        (60, "1m"),
        (5400, "1h30m"),
        (90_061, "1d1h1m1s"),
    ],
)
def test_durations_are_shown_compactly(seconds, text):
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, ""),
        (0.2, "just now"),
        (59.9, "59s ago"),
        (60, "1m ago"),
        (7300, "2h ago"),
        (9e5, "10d ago"),
    ],
)
def test_ages_have_one_unit(seconds, text):
    assert units.format_age(seconds) == text


@pytest.mark.parametrize(
    ("text", "us"), [("0", 0), ("20ms", 20_000), ("500us", 500), ("1s", 10**6)]
)
def test_bursts_are_times(text, us):
    assert units.parse_burst(text) == us


@pytest.mark.parametrize("text", ["", "20", "max", "-1ms", "1.5"])
def test_a_burst_without_a_unit_is_refused(text):
    with pytest.raises(ValueError, match="20ms"):
        units.parse_burst(text)


@pytest.mark.parametrize(
    ("text", "cpu_max"),
    [
        ("1.5", (150_000, 100_000)),
        ("150%", (150_000, 100_000)),
        ("0.01", (1_000, 100_000)),
        ("1%", (1_000, 100_000)),
        ("64", (6_400_000, 100_000)),
        ("50ms/100ms", (50_000, 100_000)),
        ("1500us/10ms", (1_500, 10_000)),
        ("2s/1s", (2_000_000, 1_000_000)),
        ("max/50ms", (MAX, 50_000)),
        ("max", (MAX, 100_000)),
    ],
)
def test_cpus_percent_and_quota_in_a_period(text, cpu_max):
    assert units.parse_cpu_max(text) == cpu_max


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0.009",
        "0%",
        "-1",
        "%",
        "50ms",
        "50/100",
        "50ms/",
        "/100ms",
        "50ms/2s",
        "999us/10ms",
        "50ms/1us",
        "1.5cpus",
        "nan",
        "50ms/max",
        "9" * 30,
    ],
)
def test_what_is_no_cpu_limit_is_named(text):
    with pytest.raises(ValueError, match=r"CPUs|kernel|1s|large") as refusal:
        units.parse_cpu_max(text)
    assert repr(text) in str(refusal.value)


@given(st.integers(1, 100_000))
def test_percent_and_cpus_mean_the_same(percent):
    cpus = f"{percent // 100}.{percent % 100:02}"
    assert units.parse_cpu_max(cpus) == units.parse_cpu_max(f"{percent}%")


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ((150_000, 100_000), "1.5 CPUs"),
        ((100_000, 0), "1 CPU"),
        ((50_000, 50_000), "1 CPU (50ms/50ms)"),
        ((MAX, 100_000), "max"),
    ],
)
def test_cpu_limits_are_shown_in_cpus(limit, text):
    assert units.format_cpu_max(*limit) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigterm", 15),
        ("15", 15),
        ("KILL", 9),
        ("64", 64),
        ("RTMIN", 34),
        ("RTMIN+1", 35),
        ("sigrtmax-2", 62),
    ],
)
def test_signals_have_names_and_numbers(text, number):
    assert units.parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-9", "NOPE", "SIG", "SIG15", "999", "RTMIN+31", "RTMAX+1", "RTMIN-1"]
)
def test_what_is_no_signal_is_named(text):
    with pytest.raises(ValueError, match="SIGTERM") as refusal:
        units.parse_signal(text)
    assert repr(text) in str(refusal.value)


def test_signals_are_shown_by_name():
    assert units.format_signal(9) == "SIGKILL"
    assert units.format_signal(signal.SIGRTMIN + 6) == "SIGRTMIN+6"
    assert units.format_signal(32) == "signal 32"


@pytest.mark.parametrize(
    ("text", "pair"), [("a=b", ("a", "b")), ("a=", ("a", "")), ("a=b=c", ("a", "b=c"))]
)
def test_the_first_equals_sign_divides_a_pair(text, pair):
    assert units.parse_pair(text) == pair


@pytest.mark.parametrize("text", ["", "a", "=b"])
def test_what_is_no_pair_is_named(text):
    with pytest.raises(ValueError, match="KEY=VALUE"):
        units.parse_pair(text)


@pytest.mark.parametrize("text", ["", "-1", "1k", "0x1", str(2**64), "1" * 21])
def test_what_is_no_offset_is_named(text):
    with pytest.raises(ValueError, match="number of bytes"):
        units.parse_offset(text)


@given(st.text(max_size=12))
def test_no_text_makes_a_parser_raise_anything_but_value_error(text):
    for parse in (
        units.parse_size,
        units.parse_count,
        units.parse_weight,
        units.parse_device_size,
        units.parse_device_count,
        units.parse_duration,
        units.parse_burst,
        units.parse_cpu_max,
        units.parse_signal,
        units.parse_pair,
        units.parse_offset,
    ):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017
