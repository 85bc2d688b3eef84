"""When something that failed is tried again."""

from __future__ import annotations

import errno

from jobworker.shim.retry import ATTEMPTS, LONGEST, Retry


def test_pauses_grow_up_to_a_bound() -> None:
    retry = Retry()
    pauses = [retry.after(OSError(errno.ENOSPC, "full")) for _ in range(2000)]
    assert pauses[:7] == [0.25, 0.5, 1, 2, 4, 8, LONGEST]
    assert set(pauses[6:]) == {LONGEST}
    assert retry.failures == 2000


def test_what_does_not_pass_is_given_up() -> None:
    for error in (OSError(errno.EROFS, "read-only"), ValueError("nonsense")):
        retry = Retry()
        pauses = [retry.after(error) for _ in range(ATTEMPTS)]
        assert pauses[-1] is None
        assert None not in pauses[:-1]


def test_what_passes_does_not_count_towards_giving_up() -> None:
    retry = Retry()
    for _ in range(ATTEMPTS * 2):
        assert retry.after(OSError(errno.EIO, "broken")) is not None
    assert retry.after(OSError(errno.EACCES, "denied")) is not None
