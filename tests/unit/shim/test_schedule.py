"""When a job is stopped and killed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobworker.shim.schedule import Schedule


def test_nothing_is_due_without_a_timeout_or_a_stop() -> None:
    schedule = Schedule()
    schedule.start(5.0, None)
    assert schedule.next() is None


def test_timeout_is_due_first_and_then_the_kill() -> None:
    schedule = Schedule()
    schedule.start(5.0, 10.0)
    assert schedule.next() == 15.0
    schedule.expire(15.0, 2.0)
    assert (schedule.next(), schedule.timed_out, schedule.stopped) == (17.0, True, False)


def test_stop_does_not_hide_a_timeout_that_comes_before_the_kill() -> None:
    schedule = Schedule()
    schedule.start(0.0, 10.0)
    schedule.stop(1.0, 100.0)
    assert (schedule.next(), schedule.timeout_at) == (10.0, 10.0)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.booleans()), min_size=1, max_size=6)
)
def test_asking_again_never_puts_the_kill_off(
    requests: list[tuple[float, float, bool]],
) -> None:
    schedule = Schedule()
    for now, grace, timeout in sorted(requests):
        before = schedule.kill_at
        (schedule.expire if timeout else schedule.stop)(now, grace)
        assert schedule.kill_at is not None
        assert schedule.kill_at <= (now + grace if before is None else before)
        assert schedule.kill_at <= now + grace
