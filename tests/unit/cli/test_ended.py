from __future__ import annotations

import pytest

from jobworker.cli.ended import exit_status, remark
from jobworker.rpc.v1 import jobworker_pb2 as pb


def detail(status, code=-1, signal=0, reason=pb.REASON_UNSPECIFIED, message=""):
    return pb.StatusDetail(
        status=status, exit_code=code, signal=signal, reason=reason, message=message
    )


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (detail(pb.STATUS_EXITED, 0, reason=pb.REASON_EXITED), 0, ""),
        (detail(pb.STATUS_EXITED, 255, reason=pb.REASON_EXITED), 255, ""),
        (detail(pb.STATUS_EXITED, signal=11, reason=pb.REASON_SIGNALED), 139, ""),
        (
            detail(pb.STATUS_EXITED, signal=9, reason=pb.REASON_OUT_OF_MEMORY),
            137,
            "job j: exited (out of memory, SIGKILL)",
        ),
        (
            detail(pb.STATUS_STOPPED, signal=15, reason=pb.REASON_STOPPED),
            143,
            "job j: stopped (SIGTERM)",
        ),
        (
            detail(pb.STATUS_STOPPED, 0, reason=pb.REASON_TIMED_OUT),
            0,
            "job j: stopped (timed out, exit code 0)",
        ),
        (
            detail(pb.STATUS_STOPPED, reason=pb.REASON_STOPPED, message="its shim died"),
            125,
            "job j: stopped; its shim died",
        ),
        (
            detail(pb.STATUS_LOST, reason=pb.REASON_LOST, message="its shim died"),
            125,
            "job j: lost; its shim died",
        ),
        (detail(pb.STATUS_RUNNING), 124, "job j: running"),
        (detail(pb.STATUS_PENDING), 124, "job j: pending"),
    ],
)
def test_the_exit_status_is_the_jobs_own_or_one_of_ours_with_a_remark(end, status, said):
    assert exit_status(end) == status
    assert remark("j", end) == said
