from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from jobworker.rpc import frames
from jobworker.rpc.v1 import jobworker_pb2 as pb

OFFSETS = st.integers(0, 2**64 - 1)
OUTPUTS = st.binary(max_size=40) | st.integers(0, 70_000).map(bytes)
ENDS = st.none() | st.builds(pb.OutputEnd, size=OFFSETS)


@given(OFFSETS, OUTPUTS)
def test_a_header_and_the_output_are_a_message_of_the_contract(offset, output):
    frame = frames.header(offset, len(output)) + output
    assert pb.OutputResponse.FromString(frame) == pb.OutputResponse(offset=offset, output=output)


@given(OFFSETS, OUTPUTS)
def test_a_frame_is_read_without_a_copy_of_its_output(offset, output):
    frame = frames.header(offset, len(output)) + output
    message = frames.decode(frame)
    assert (message.offset, message.output, message.has_end) == (offset, output, False)
    assert message.view.obj is frame


@given(OFFSETS, OUTPUTS, ENDS)
def test_whatever_protobuf_writes_is_read(offset, output, end):
    written = pb.OutputResponse(offset=offset, output=output, end=end)
    message = frames.decode(written.SerializeToString())
    assert message == written
    assert message.HasField("end") == written.HasField("end")
    assert message.end == written.end


@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_protobuf_reads_them(data):
    try:
        expected = pb.OutputResponse.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            frames.decode(data)
    else:
        # A field that the contract does not know is not kept.
        expected.DiscardUnknownFields()
        assert frames.decode(data) == expected


@given(OFFSETS, st.binary(max_size=60))
def test_bytes_behind_a_header_are_read_as_protobuf_reads_them(offset, data):
    for prefix in (b"\x10", frames.header(offset, 3), frames.header(offset, 2**40), b"\x0a"):
        test_any_bytes_are_read_as_protobuf_reads_them.hypothesis.inner_test(prefix + data)


def test_an_output_message_says_what_it_is():
    message = frames.OutputMessage(7, memoryview(b"ab"), gap=3)
    assert repr(message) == "<OutputMessage: 2 bytes at 7>"
    assert message.end == pb.OutputEnd()
    with pytest.raises(ValueError, match="no optional field"):
        message.HasField("output")
