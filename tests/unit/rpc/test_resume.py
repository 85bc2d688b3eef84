from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from jobworker.rpc.frames import OutputMessage
from jobworker.rpc.resume import (
    LAST_DELAY,
    LONG_STREAM,
    NOTICE_AFTER,
    OutputInterrupted,
    OutputProgress,
    never_connected,
    problem_of,
)
from jobworker.rpc.v1 import jobworker_pb2 as pb

EXITED = pb.StatusDetail(status=pb.STATUS_EXITED, exit_code=0)
RUNNING = pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1)


def failure(code: grpc.StatusCode, details: str = "Socket closed") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details)


LOST = failure(grpc.StatusCode.UNAVAILABLE)
UNREACHABLE = failure(
    grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: …"
)


def data(offset: int, output: bytes, end: pb.OutputEnd | None = None) -> OutputMessage:
    return OutputMessage(offset, memoryview(output), end)


def end(size: int, status: pb.StatusDetail = EXITED) -> OutputMessage:
    return data(size, b"", pb.OutputEnd(status=status, size=size))


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, int, list[list[tuple[int, int]]]]:
    """An output, where to begin, and for each stream the (overlap, length) of its messages."""
    output = draw(st.binary(max_size=200))
    start = draw(st.integers(0, len(output)))
    message = st.tuples(st.integers(0, 5), st.integers(0, 40))
    return output, start, draw(st.lists(st.lists(message, max_size=6), max_size=8))


@given(streams())
def test_every_byte_arrives_once_whatever_is_cut_off_or_repeated(case):
    output, start, attempts = case
    progress = OutputProgress("id", offset=start)
    received = b""
    expected_offset = start
    for messages in [*attempts, [(0, len(output))]]:
        position = progress.request(now=0).offset
        assert position == start + len(received)
        for overlap, length in messages:
            begin = max(position - overlap, 0)
            chunk = output[begin : position + length]
            position = begin + len(chunk)
            news = progress.accept(data(begin, chunk))
            if news is not None:
                assert news.offset == expected_offset
                received += news.output
                expected_offset += len(news.output)
    assert not progress.finished
    last = progress.accept(end(len(output)))
    assert progress.finished
    assert last is not None
    assert last.HasField("end")
    assert received == output[start:]


def test_a_jump_forwards_is_passed_on_with_what_was_dropped():
    progress = OutputProgress("id")
    assert progress.accept(data(0, b"ab")).gap == 0
    news = progress.accept(data(5, b"x"))
    assert (news.offset, news.output, news.gap) == (5, b"x", 3)
    assert progress.offset == 6


def test_a_stream_that_is_taken_up_again_behind_a_jump_shows_it_too():
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    progress.lost(0, LOST)
    assert progress.request(0).offset == 2
    assert progress.accept(data(7, b"x")).gap == 5


def test_what_was_dropped_at_the_end_of_what_a_running_job_has_written_is_shown_with_the_end():
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    news = progress.accept(end(9, RUNNING))
    assert (news.gap, progress.finished, progress.offset) == (7, True, 9)


def test_bytes_that_were_delivered_are_not_delivered_again():
    progress = OutputProgress("id")
    progress.accept(data(0, b"abc"))
    assert progress.accept(data(1, b"bc")) is None
    news = progress.accept(data(1, b"bcd"))
    assert (news.offset, news.output, news.gap) == (3, b"d", 0)


@pytest.mark.parametrize("last", [{"last_bytes": 5}, {"last_lines": 5}])
def test_where_the_last_of_the_output_begins_the_server_says_and_the_rest_goes_by_offset(last):
    progress = OutputProgress("id", tail=True, **last)
    assert progress.request(0) == pb.OutputRequest(job_id="id", tail=True, **last)
    assert progress.accept(data(40, b"")) is None
    assert progress.request(0) == pb.OutputRequest(job_id="id", tail=True, offset=40)
    news = progress.accept(data(40, b"ab"))
    assert (news.gap, progress.offset) == (0, 42)


def test_the_last_of_the_output_is_asked_for_again_until_the_server_has_said_where_that_is():
    progress = OutputProgress("id", last_lines=0)
    assert progress.request(0).HasField("last_lines")
    progress.lost(0)
    assert progress.request(0).HasField("last_lines")


def test_a_jump_forwards_is_passed_on_and_not_asked_for_again():
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    news = progress.accept(data(5, b"xy"))
    assert (news.offset, news.output) == (5, b"xy")
    assert progress.request(0).offset == 7
    news = progress.accept(data(6, b"yz"))
    assert (news.offset, news.output) == (7, b"z")


def test_the_stream_that_is_read_is_asked_for_again():
    progress = OutputProgress("id", stream=pb.OUTPUT_STREAM_STDERR)
    progress.accept(data(0, b"ab"))
    assert progress.request(0).stream == pb.OUTPUT_STREAM_STDERR


def test_output_and_end_may_share_a_message():
    progress = OutputProgress("id")
    message = data(0, b"ab", pb.OutputEnd(status=EXITED, size=2))
    assert progress.accept(message) == message
    assert progress.finished


def test_an_end_before_the_last_byte_of_a_finished_job_is_none():
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    assert progress.accept(end(3)) is None
    assert not progress.finished
    assert progress.lost(0) > 0
    assert progress.request(0).offset == 2


def test_the_bytes_beside_such_an_end_are_delivered_without_it():
    progress = OutputProgress("id")
    message = data(0, b"ab", pb.OutputEnd(status=EXITED, size=3))
    assert progress.accept(message) == data(0, b"ab")


def test_an_end_of_a_running_job_ends_the_stream_whatever_it_has_written_since():
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    assert progress.accept(end(3, RUNNING)) is not None
    assert progress.finished


def test_an_offset_beyond_the_output_is_at_the_end_at_once():
    progress = OutputProgress("id", offset=10)
    progress.accept(end(3))
    assert progress.finished


def test_empty_messages_are_not_passed_on():
    assert OutputProgress("id").accept(data(0, b"")) is None


def test_the_request_carries_what_was_asked_for():
    request = OutputProgress("id", tail=True, offset=7).request(0)
    assert request == pb.OutputRequest(job_id="id", tail=True, offset=7)


def test_a_server_that_was_never_reached_is_an_error_at_once():
    with pytest.raises(AioRpcError) as error:
        OutputProgress("id").lost(0, UNREACHABLE)
    assert error.value is UNREACHABLE


def test_a_server_that_another_call_has_reached_is_waited_for():
    assert OutputProgress("id", reached=True).lost(0, UNREACHABLE) > 0


def test_a_server_that_was_reached_once_is_waited_for():
    progress = OutputProgress("id")
    progress.lost(0, LOST)
    assert progress.lost(1, UNREACHABLE) > 0


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code.name not in {"UNAVAILABLE", "CANCELLED", "OK"}],
)
def test_a_refusal_is_an_error_at_once_even_after_some_output(code):
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    with pytest.raises(AioRpcError):
        progress.lost(0, failure(code))


def test_a_stream_that_just_ends_is_taken_up_again():
    progress = OutputProgress("id")
    progress.accept(data(0, b"ab"))
    assert progress.lost(0) > 0


def test_delays_grow_up_to_a_bound_and_start_over_after_progress():
    progress = OutputProgress("id")
    delays = [progress.lost(0, LOST) for _ in range(12)]
    assert delays == sorted(delays)
    assert delays[0] < delays[1]
    assert delays[-1] == delays[-2] == LAST_DELAY
    progress.accept(data(0, b"ab"))
    assert progress.lost(0, LOST) == delays[0]


def test_it_gives_up_after_a_time_without_progress():
    progress = OutputProgress("id", give_up_after=30)
    progress.accept(data(0, b"ab"))
    progress.lost(100, LOST)
    progress.lost(129.9, UNREACHABLE)
    with pytest.raises(OutputInterrupted, match="cut off at byte 2") as interruption:
        progress.lost(130, UNREACHABLE)
    assert interruption.value.__cause__ is UNREACHABLE


def test_an_end_that_never_comes_true_is_given_up_too():
    progress = OutputProgress("id", give_up_after=30)
    for now in range(30):
        progress.request(now)
        assert progress.accept(end(3)) is None
        progress.lost(now)
    with pytest.raises(OutputInterrupted, match="ended early"):
        progress.lost(30)


def test_progress_restarts_the_time():
    progress = OutputProgress("id", give_up_after=30)
    progress.lost(100, LOST)
    progress.accept(data(0, b"ab"))
    assert progress.lost(140, LOST) > 0


def test_a_long_silent_stream_of_a_quiet_job_restarts_the_time():
    progress = OutputProgress("id", tail=True, give_up_after=30)
    progress.lost(100, LOST)
    progress.request(101)
    assert progress.lost(101 + 3600, LOST) > 0
    progress.request(5000)
    with pytest.raises(OutputInterrupted):
        progress.lost(5000 + LONG_STREAM - 1, LOST)


def test_a_long_wait_for_a_connection_does_not():
    progress = OutputProgress("id", tail=True, give_up_after=30)
    progress.lost(100, LOST)
    progress.request(110)
    with pytest.raises(OutputInterrupted):
        progress.lost(131, UNREACHABLE)


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: refused",
        "errors resolving nowhere.invalid:1: [field:hostname lookup error:…]",
        "DNS resolution failed for nowhere.invalid:1: …",
    ],
)
def test_gRPC_says_in_words_that_there_was_no_connection(details):
    assert never_connected(failure(grpc.StatusCode.UNAVAILABLE, details))


def test_what_kept_a_connection_from_being_made_is_said_without_the_addresses():
    details = (
        "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:1: "
        "Failed to connect to remote host: Connection refused"
    )
    assert problem_of(failure(grpc.StatusCode.UNAVAILABLE, details)) == "Connection refused"


def test_a_connection_that_broke_was_one():
    assert not never_connected(failure(grpc.StatusCode.UNAVAILABLE, "Cancelling all calls"))
    assert not never_connected(AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata()))


def test_an_interruption_is_to_be_told_of_once_and_only_if_it_takes_long():
    progress = OutputProgress("id", tail=True)
    told = []
    for now in (0, NOTICE_AFTER / 2, NOTICE_AFTER, 2 * NOTICE_AFTER, 3 * NOTICE_AFTER):
        progress.request(now)
        progress.lost(now, LOST)
        told.append(progress.must_notify(now))
    assert told == [False, False, True, False, False]


def test_the_next_interruption_is_to_be_told_of_again():
    progress = OutputProgress("id", tail=True)
    told = []
    for begin in (0, 100):
        for now in (begin, begin + NOTICE_AFTER):
            progress.request(now)
            progress.lost(now, LOST)
        told.append(progress.must_notify(now))
        progress.accept(data(progress.offset, b"x"))
        assert not progress.must_notify(now)
    assert told == [True, True]
