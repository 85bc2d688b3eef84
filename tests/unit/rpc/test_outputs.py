"""Over which connection a client's streams of output go: the connections are stand-ins."""

from contextlib import ExitStack

import pytest

from jobworker.rpc import channel
from jobworker.rpc.outputs import Outputs
from jobworker.rpc.v1 import jobworker_pb2 as pb

REQUEST = pb.OutputRequest(job_id="j")


class Connection:
    """Notes the calls that are open on it."""

    def __init__(self):
        self.calls = []
        self.closed = False

    def unary_stream(self, method, **_serializers):
        assert method == "/jobworker.v1.JobWorkerService/Output"
        return lambda _request: Call(self.calls)

    async def close(self):
        self.closed = True


class Call:
    def __init__(self, calls):
        self._calls = calls
        calls.append(self)

    def cancel(self):
        self._calls.remove(self)


@pytest.fixture
def main():
    return Connection()


@pytest.fixture
def made():
    return []


@pytest.fixture
def outputs(main, made):
    def connect(ahead):
        made.append((ahead, Connection()))
        return made[-1][1]

    return Outputs(main, connect)


def test_a_few_streams_go_over_the_clients_own_connection(outputs, main, made):
    with ExitStack() as stack:
        for _ in range(channel.WIDE_STREAMS):
            stack.enter_context(outputs.open(REQUEST))
        assert len(main.calls) == channel.WIDE_STREAMS
        assert made == []


def test_the_others_go_over_one_more_where_each_sends_less_ahead(outputs, main, made):
    with ExitStack() as stack:
        for _ in range(channel.WIDE_STREAMS + 7):
            stack.enter_context(outputs.open(REQUEST))
        ((ahead, crowded),) = made
        assert (len(main.calls), len(crowded.calls)) == (channel.WIDE_STREAMS, 7)
        assert ahead == channel.NARROW < channel.WIDE


def test_a_stream_that_has_ended_gives_its_place_back(outputs, main):
    with ExitStack() as stack:
        for _ in range(channel.WIDE_STREAMS - 1):
            stack.enter_context(outputs.open(REQUEST))
        for _ in range(3):
            with outputs.open(REQUEST):
                assert len(main.calls) == channel.WIDE_STREAMS
    assert main.calls == []


def test_a_stream_that_fails_gives_its_place_back(outputs, main, made):
    for _ in range(channel.WIDE_STREAMS + 1):
        with pytest.raises(ZeroDivisionError), outputs.open(REQUEST):
            raise ZeroDivisionError
    assert (main.calls, made) == ([], [])


def test_those_that_have_to_be_narrow_take_no_place_of_the_wide(outputs, main):
    with ExitStack() as crowd:
        with ExitStack() as first:
            for _ in range(channel.WIDE_STREAMS):
                first.enter_context(outputs.open(REQUEST))
            for _ in range(channel.WIDE_STREAMS):
                crowd.enter_context(outputs.open(REQUEST))
        assert main.calls == []
        with outputs.open(REQUEST):
            assert len(main.calls) == 1


async def test_closing_closes_what_was_made_here_and_nothing_else(outputs, main, made):
    with ExitStack() as stack:
        for _ in range(channel.WIDE_STREAMS + 1):
            stack.enter_context(outputs.open(REQUEST))
    await outputs.close()
    assert [connection.closed for _, connection in made] == [True]
    assert not main.closed


async def test_no_connection_is_made_after_closing(outputs, main, made):
    with ExitStack() as stack:
        for _ in range(channel.WIDE_STREAMS):
            stack.enter_context(outputs.open(REQUEST))
        await outputs.close()
        with outputs.open(REQUEST):  # A real connection says that it is closed.
            assert len(main.calls) == channel.WIDE_STREAMS + 1
    assert made == []
