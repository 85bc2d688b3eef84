"""The table of events: order, positions, pruning, and tokens that lead nowhere."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from jobworker.errors import EventsExpired, InvalidArgument, ResourceExhausted
from jobworker.job.event import EventType, JobEvent
from jobworker.job.registry import event_log
from jobworker.job.registry.event_log import BATCH, WINDOW, EventLog
from jobworker.job.registry.store import Store
from jobworker.job.state import JobStatus, Reason, State

EXITED = JobStatus(State.EXITED, exit_code=3, reason=Reason.EXITED, message="ü")


def event(number: int, *, job_id: str = "j1", owner: str = "user_alpha") -> JobEvent:
    return JobEvent(
        type=EventType.SIGNALED,
        time=1000.5 + number,
        job_id=job_id,
        owner=owner,
        name="n",
        status=EXITED,
        user="user_bravo",
        signal=10,
    )


def append(log, store, *numbers: int, **fields: str) -> None:
    with store.transaction():
        for number in numbers:
            log.append(event(number, **fields))


def read_all(log, position, **filters):
    """Read to the end; return the events, and how many batches they came in."""
    events = []
    for batches in range(1, 10_000):
        batch = log.read(position, **filters)
        events += [found for _, found in batch.events]
        position = batch.reached
        if batch.last:
            return events, batches
    raise AssertionError


@pytest.fixture
def log(store):
    return EventLog(store)


def test_events_come_back_as_they_went_in_and_in_order(log, store):
    start = log.end()
    append(log, store, *range(BATCH * 2 + 1))
    assert read_all(log, start) == ([event(number) for number in range(BATCH * 2 + 1)], 3)


def test_each_event_has_a_token_that_continues_after_it(log, store):
    start = log.end()
    append(log, store, 1, 2, 3)
    for position, found in log.read(start).events:
        rest = [each for _, each in log.read(log.find(position.token())).events]
        assert rest == [event(number) for number in range(int(found.time - 1000.5) + 1, 4)]


def test_the_end_is_where_only_new_events_are_read(log, store):
    append(log, store, 1)
    end = log.find(log.end().token())
    assert log.read(end) == ([], end, True)
    append(log, store, 2)
    assert [found for _, found in log.read(end).events] == [event(2)]


def test_the_token_of_a_registry_without_events_gets_all_that_come(log, store):
    token = log.end().token()
    append(log, store, 1)
    assert read_all(log, log.find(token))[0] == [event(1)]


def test_what_was_rolled_back_never_happened(log, store):
    start = log.end()
    with contextlib.suppress(ResourceExhausted), store.transaction():
        log.append(event(1))
        raise ResourceExhausted("full")
    append(log, store, 2)
    assert read_all(log, start)[0] == [event(2)]


def test_only_events_of_one_job_or_owner_are_read(log, store):
    start = log.end()
    append(log, store, 1)
    append(log, store, 2, job_id="j2")
    append(log, store, 3, owner="user_bravo")
    assert read_all(log, start, job_id="j2")[0] == [event(2, job_id="j2")]
    assert read_all(log, start, owner="user_bravo")[0] == [event(3, owner="user_bravo")]
    assert read_all(log, start, job_id="j2", owner="user_bravo")[0] == []


def test_a_read_looks_through_a_bounded_number_of_events(log, store):
    start = log.end()
    append(log, store, *range(WINDOW * 2))
    append(log, store, 1, job_id="j2")
    first = log.read(start, job_id="j2")
    assert (first.events, first.last, first.reached.sequence) == ([], False, WINDOW)
    assert log.find(first.reached.token()) == first.reached
    assert read_all(log, start, job_id="j2") == ([event(1, job_id="j2")], 3)


def test_the_oldest_events_are_forgotten(store):
    log = EventLog(store, kept=100)
    for number in range(0, 1000, 10):
        append(log, store, *range(number, number + 10))
    ((count,),) = store.read("SELECT count(*) FROM events", {})
    assert 100 <= count < 100 + event_log._PRUNED_AT
    newest = store.read("SELECT time FROM events ORDER BY sequence DESC LIMIT 1", {})
    assert newest[0]["time"] == event(999).time


def test_a_position_before_the_oldest_event_has_expired(store):
    log = EventLog(store, kept=10)
    start = log.end()
    append(log, store, 0)
    early = log.end()
    append(log, store, *range(1, 200))
    for lost in (lambda: log.find(early.token()), lambda: log.read(early), lambda: log.read(start)):
        with pytest.raises(EventsExpired, match="list the jobs, and watch from now on"):
            lost()
    ((oldest,),) = store.read("SELECT min(sequence) FROM events", {})
    append(log, store, 200)
    batch = log.read(log._before(oldest))
    assert batch.events[0][0].sequence == oldest + 1


def test_numbers_are_not_given_out_again_when_all_events_are_gone(log, store):
    append(log, store, 1, 2)
    end = log.end()
    store.write("DELETE FROM events", {})
    append(log, store, 3)
    assert log.end().sequence == end.sequence + 1


def test_a_token_of_another_registry_is_refused(log, store, tmp_path):
    append(log, store, 1)
    other = Store.open(tmp_path / "other.db")
    with pytest.raises(InvalidArgument, match="resume_token: is of another registry"):
        EventLog(other).find(log.end().token())
    other.close()


def test_a_token_stays_good_when_the_registry_is_opened_again(log, store, tmp_path):
    append(log, store, 1)
    token = log.end().token()
    append(log, store, 2)
    again = Store.open(tmp_path / "jobs.db")
    assert read_all(EventLog(again), EventLog(again).find(token))[0] == [event(2)]
    again.close()


def test_a_token_of_an_event_that_was_lost_with_the_power_has_expired(log, store, tmp_path):
    append(log, store, 1)
    with sqlite3.connect(tmp_path / "backup.db") as backup:
        store._connection.backup(backup)
    backup.close()
    append(log, store, 2)
    lost = log.end().token()
    restored = Store.open(tmp_path / "backup.db")
    log = EventLog(restored)
    with pytest.raises(EventsExpired):  # It is of the future.
        log.find(lost)
    append(log, restored, 3)
    with pytest.raises(EventsExpired):  # Its number is another event's.
        log.find(lost)
    restored.close()
