from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.watch import WatchInterrupted, WatchProgress

LOST = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "Socket closed")


def event(token: str, kind: pb.EventType.ValueType = pb.EVENT_TYPE_STARTED) -> pb.WatchResponse:
    return pb.WatchResponse(resume_token=token, type=kind)


def test_the_first_request_is_what_was_asked_for():
    progress = WatchProgress("t", job_id="j", owner="o")
    assert progress.request(now=0) == pb.WatchRequest(resume_token="t", job_id="j", owner="o")


def test_each_request_begins_after_the_last_message():
    progress = WatchProgress()
    assert progress.request(now=0).resume_token == ""
    for token in ("1", "2"):
        progress.accept(event(token))
    assert progress.lost(now=1, error=LOST) > 0
    assert progress.request(now=2).resume_token == "2"


def test_a_message_without_an_event_moves_the_token_too():
    progress = WatchProgress()
    progress.accept(event("1", pb.EVENT_TYPE_UNSPECIFIED))
    assert progress.request(now=0).resume_token == "1"


@pytest.mark.parametrize(("job_id", "finished"), [("j", True), ("", False)])
def test_only_the_removal_of_the_one_job_is_an_end(job_id, finished):
    progress = WatchProgress(job_id=job_id)
    progress.accept(event("1", pb.EVENT_TYPE_ENDED))
    assert not progress.finished
    progress.accept(event("2", pb.EVENT_TYPE_REMOVED))
    assert progress.finished is finished


def test_a_server_that_stays_away_is_an_error_that_says_how_to_go_on():
    progress = WatchProgress(give_up_after=5)
    progress.request(now=0)
    progress.accept(event("7"))
    progress.lost(now=1, error=LOST)
    progress.request(now=2)
    with pytest.raises(WatchInterrupted, match="events were cut off: Socket closed") as given_up:
        progress.lost(now=6, error=LOST)
    assert given_up.value.resume_token == "7"


def test_a_token_that_has_expired_is_not_tried_again():
    progress = WatchProgress("t")
    progress.request(now=0)
    refusal = AioRpcError(grpc.StatusCode.OUT_OF_RANGE, Metadata(), Metadata(), "list the jobs")
    with pytest.raises(AioRpcError, match="list the jobs"):
        progress.lost(now=0, error=refusal)
