import pytest

from jobworker.cli import events
from jobworker.rpc.v1 import jobworker_pb2 as pb

JOB = "5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"


def line(**fields):
    fields = {"status": pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1), **fields}
    message = pb.WatchResponse(job_id=JOB, **fields)
    message.time.FromSeconds(90)
    return events.line(message, lambda seconds: f"at {seconds:g}")


def test_a_line_says_when_what_to_which_job_and_who():
    assert line(type=pb.EVENT_TYPE_STARTED, user="user_alpha") == (
        f"at 90  {JOB}  started               running      user_alpha"
    )


def test_an_end_says_how_and_that_nobody_asked_for_it():
    status = pb.StatusDetail(status=pb.STATUS_EXITED, exit_code=3, reason=pb.REASON_EXITED)
    assert line(type=pb.EVENT_TYPE_ENDED, status=status, name="build") == (
        f"at 90  {JOB}  ended                 exited (3)   -  build"
    )


@pytest.mark.parametrize("kind", sorted(set(pb.EventType.values()) - {0}))
def test_every_event_has_words(kind):
    words = pb.EventType.Name(kind).removeprefix("EVENT_TYPE_").replace("_", " ").lower()
    assert f"{JOB}  {words}  " in line(type=kind)


def test_a_signal_has_its_name():
    assert "  signaled (SIGUSR1)  " in line(type=pb.EVENT_TYPE_SIGNALED, signal=10)


def test_what_others_have_named_is_fit_for_a_terminal():
    assert line(type=pb.EVENT_TYPE_STARTED, name="a\x1b[2J\nb").endswith(r"a\x1b[2J\nb")
