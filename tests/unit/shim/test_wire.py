"""Messages between server and shim."""

from __future__ import annotations

import json
from itertools import cycle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobworker.shim import wire
from jobworker.shim.wire import Decoder, ExitRecord, Launch

LAUNCH = {
    "job_id": "a",
    "executables": ["/bin/true"],
    "argv": ["true"],
    "env": {"A": "1"},
    "working_directory": "/",
    "cgroup_path": "/cgroup2/jobworker/a",
}
RECORD = {
    "job_id": "a",
    "version": 1,
    "boot_id": "b",
    "pid": 7,
    "exit_code": 0,
    "started_at": 1.5,
    "ended_at": 2,
    "runtime": 0.5,
    "output_size": 3,
}
TEXT = st.text(max_size=6)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=8,
)


def test_launch_survives_the_wire() -> None:
    launch = Launch(**LAUNCH, uid=1, gid=2, groups=[3], timeout=1.5)  # type: ignore[arg-type]
    assert Launch.from_json(json.loads(json.dumps(launch.to_json()))) == launch


def test_launch_ignores_what_a_newer_server_adds() -> None:
    assert Launch.from_json({**LAUNCH, "colour": "red"}) == Launch.from_json(LAUNCH)


@pytest.mark.parametrize("name", LAUNCH)
def test_launch_needs_each_key(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Launch.from_json({key: value for key, value in LAUNCH.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job_id", ""),
        ("job_id", 1),
        ("executables", []),
        ("executables", "true"),
        ("argv", []),
        ("argv", ["a\0b"]),
        ("argv", ["\ud800"]),
        ("argv", [1]),
        ("env", {"A=B": "1"}),
        ("env", {"": "1"}),
        ("env", {"A": "\0"}),
        ("env", {"A": None}),
        ("working_directory", "tmp"),
        ("cgroup_path", "jobworker/a"),
        ("stop_signal", 0),
        ("stop_signal", 65),
        ("stop_signal", True),
        ("stop_grace", -1),
        ("stop_grace", float("nan")),
        ("stop_grace", float("inf")),
        ("timeout", "1"),
        ("uid", -1),
        ("uid", 2**32 - 1),
        ("groups", [0, "x"]),
    ],
)
def test_launch_that_cannot_be_right_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Launch.from_json({**LAUNCH, name: value})


@given(JSON_VALUES, st.sampled_from(Launch._fields))
def test_launch_of_any_json_is_read_or_refused(value: object, name: str) -> None:
    for data in (value, {**LAUNCH, name: value}):
        try:
            launch = Launch.from_json(data)
        except ValueError:
            continue
        assert Launch.from_json(launch.to_json()) == launch


def test_bytes_that_are_not_utf8_reach_the_command_unchanged() -> None:
    raw = b"caf\xe9 \xc3\xa9"
    text = raw.decode("utf-8", "surrogateescape")
    sent = wire.decode(wire.encode({"text": text})[wire.HEADER_SIZE :])
    assert wire.encode_text(sent["text"]) == raw


def test_record_survives_the_wire() -> None:
    record = ExitRecord.from_json({**RECORD, "usage": {"oom_kills": 1}, "later": 1})
    assert ExitRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    "change",
    [
        {"exit_code": None},
        {"signal": 9},
        {"exit_code": None, "signal": 0},
        {"exit_code": None, "signal": 65},
        {"exit_code": -1},
        {"exit_code": 256},
        {"exit_code": 10**30},
        {"pid": "7"},
        {"pid": 0},
        {"pid": 2**22 + 1},
        {"usage": {"a": 1.5}},
        {"usage": {"a": -1}},
        {"usage": {"a": 2**63}},
        {"usage": {"\ud800": 1}},
        {"runtime": -1},
        {"started_at": 253_402_300_800},
        {"ended_at": 1e11 * 3},
        {"ended_at": float("nan")},
        {"output_size": -1},
        {"output_size": 2**63},
        {"job_id": ""},
        {"job_id": "x" * 65},
        {"job_id": "\udcff"},
        {"boot_id": "\udcff"},
        {"cgroup_error": "\udcff"},
        {"version": 10**30},
    ],
)
def test_malformed_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ExitRecord.from_json({**RECORD, **change})


def test_record_may_say_the_most_that_can_be() -> None:
    most = {
        "exit_code": None,
        "signal": 64,
        "pid": 2**22,
        "usage": {"memory_peak": 2**63 - 1},
        "ended_at": 253_402_300_799,
        "output_size": 2**63 - 1,
        "job_id": "x" * 64,
    }
    assert ExitRecord.from_json({**RECORD, **most}).signal == 64
    assert ExitRecord.from_json({**RECORD, "exit_code": 255}).exit_code == 255


@given(
    st.lists(st.dictionaries(TEXT, st.integers() | TEXT, max_size=3), max_size=4),
    st.lists(st.integers(1, 9) | st.integers(1, 300), min_size=1, max_size=8),
)
@example([{}, {"a": "é"}, {"b": 1}], [1])
def test_decoder_finds_messages_however_the_stream_is_cut(
    messages: list[dict[str, object]], cuts: list[int]
) -> None:
    stream = b"".join(map(wire.encode, messages))
    decoder = Decoder()
    found = []
    sizes = cycle(cuts)
    while stream:
        size = next(sizes)
        decoder.feed(stream[:size])
        stream = stream[size:]
        while (message := decoder.next()) is not None:
            found.append(message)
    assert found == messages
    assert not decoder.partial


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    decoder = Decoder()
    decoder.feed(len(body).to_bytes(4, "big") + body)
    with pytest.raises(ValueError, match=r".+"):
        decoder.next()


def test_oversized_message_is_refused_before_it_has_arrived() -> None:
    decoder = Decoder()
    decoder.feed((wire.MAX_MESSAGE + 1).to_bytes(4, "big"))
    with pytest.raises(ValueError, match=str(wire.MAX_MESSAGE)):
        decoder.next()


def test_oversized_message_is_not_sent() -> None:
    with pytest.raises(ValueError, match=str(wire.MAX_MESSAGE)):
        wire.encode({"text": "x" * wire.MAX_MESSAGE})
