"""What is written down of jobs: change and event together, and ends in the end always."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jobworker.errors import ResourceExhausted
from jobworker.job.event import EventType
from jobworker.job.ledger import Ledger
from jobworker.job.record import JobRecord
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State
from tests.support.waiting import PATIENCE

PENDING = JobRecord(
    id="5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69",
    owner="user_alpha",
    spec=JobSpec(command="true", name="n"),
    created_at=1.0,
)
RUNNING = replace(PENDING, status=JobStatus(State.RUNNING), started_at=2.0)
ENDED = replace(
    RUNNING,
    status=JobStatus(State.EXITED, 3, reason=Reason.EXITED),
    ended_at=4.0,
    output_size=0,
)


def job_of(record):
    """What the ledger uses of a Job: its id, and its status before the change."""
    return SimpleNamespace(id=record.id, status=record.status)


class Disk:
    """Says "full" to statements that contain `full_for`, unless it is empty."""

    def __init__(self, store):
        self._write = store.write
        self.full_for = ""
        store.write = self.write

    def write(self, statement, values):
        if self.full_for and self.full_for in statement:
            raise ResourceExhausted("cannot write the registry: the disk is full")
        return self._write(statement, values)


@pytest.fixture
def store(store):
    store.insert(PENDING, "")
    return store


@pytest.fixture
def disk(store):
    return Disk(store)


@pytest.fixture
async def ledger(store):
    ledger = Ledger(store, lambda _job_id: True, first_retry=0.01)
    yield ledger
    await ledger.close()


def remove(ledger, store, user=""):
    with store.transaction():
        store.delete(ENDED.id)
        ledger.tell_removal(ENDED, user)
    ledger.removed(ENDED.id)


async def told(ledger, count):
    """Return type, time, user and state of all events there have been, which are `count`."""
    end = replace(ledger._events.end(), sequence=0)
    events = [event for _, event in ledger._events.read(end).events]
    assert len(events) == count
    return [(event.type, event.time, event.user, event.status.state) for event in events]


async def test_a_change_and_its_event_are_written_together(ledger, store):
    ledger.update(RUNNING, EventType.STARTED, "user_alpha")
    assert store.get(PENDING.id) == RUNNING
    assert await told(ledger, 1) == [("started", 2.0, "user_alpha", State.RUNNING)]


@pytest.mark.parametrize("full_for", ["UPDATE jobs", "INSERT INTO events"])
async def test_a_change_that_cannot_be_told_is_not_made(ledger, store, disk, full_for):
    disk.full_for = full_for
    with pytest.raises(ResourceExhausted):
        ledger.update(RUNNING, EventType.STARTED)
    assert store.get(PENDING.id) == PENDING
    await told(ledger, 0)


async def test_what_changes_no_record_is_told_and_goes_on_without(ledger, disk, caplog):
    ledger.tell(EventType.SIGNALED, RUNNING, "user_bravo", signal=10)
    disk.full_for = "INSERT INTO events"
    ledger.tell(EventType.PAUSED, RUNNING, "user_bravo")
    ((kind, _, user, state),) = await told(ledger, 1)
    assert (kind, user, state) == ("signaled", "user_bravo", State.RUNNING)
    assert "who watches is not told" in caplog.text


async def test_an_end_is_written_with_its_event(ledger, store):
    ledger.end(job_of(RUNNING), ENDED)
    assert store.get(PENDING.id) == ENDED
    assert await told(ledger, 1) == [("ended", 4.0, "", State.EXITED)]


async def test_an_end_that_overtook_the_beginning_tells_of_both(ledger):
    ledger.end(job_of(PENDING), ENDED)
    assert await told(ledger, 2) == [
        ("started", 2.0, "user_alpha", State.RUNNING),
        ("ended", 4.0, "", State.EXITED),
    ]


async def test_an_end_is_told_once_however_often_it_is_found(ledger, store):
    ledger.end(job_of(RUNNING), ENDED)
    ledger.end(job_of(RUNNING), replace(ENDED, ended_at=5.0))
    assert store.get(PENDING.id) == ENDED
    await told(ledger, 1)


@pytest.mark.parametrize("full_for", ["UPDATE jobs", "INSERT INTO events"])
async def test_an_end_that_cannot_be_written_is_tried_until_it_can(ledger, store, disk, full_for):
    async with aclosing(ledger.watching.watch()) as watch:
        await anext(watch)
        disk.full_for = full_for
        job = job_of(RUNNING)
        ledger.end(job, ENDED)
        assert ledger.unwritten(job.id) is job
        assert store.get(PENDING.id) == PENDING
        disk.full_for = ""
        async with asyncio.timeout(PATIENCE):
            assert (await anext(watch)).event.type is EventType.ENDED
    assert store.get(PENDING.id) == ENDED
    await told(ledger, 1)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda ledger, _store: ledger.update(RUNNING, EventType.STARTED), "started"),
        (lambda ledger, _store: ledger.tell(EventType.PAUSED, RUNNING), "paused"),
        (lambda ledger, _store: ledger.end(job_of(RUNNING), ENDED), "ended"),
        (remove, "removed"),
    ],
)
async def test_who_waits_for_events_is_woken_by_each(ledger, store, write, kind):
    async with aclosing(ledger.watching.watch()) as watch:
        await anext(watch)
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        write(ledger, store)
        async with asyncio.timeout(PATIENCE):
            assert (await waiting).event.type == kind


async def test_leaving_tries_once_more(store, disk):
    ledger = Ledger(store, lambda _job_id: True, first_retry=3600)
    disk.full_for = "UPDATE jobs"
    ledger.end(job_of(RUNNING), ENDED)
    disk.full_for = ""
    await ledger.close()
    assert ledger.unwritten(PENDING.id) is None
    assert store.get(PENDING.id) == ENDED


async def test_leaving_goes_on_while_the_disk_is_full(store, disk):
    ledger = Ledger(store, lambda _job_id: True, first_retry=3600)
    disk.full_for = "UPDATE jobs"
    ledger.end(job_of(RUNNING), ENDED)
    await ledger.close()
    assert store.get(PENDING.id) == PENDING


async def test_a_removal_and_its_event_are_written_together(ledger, store, disk):
    ledger.end(job_of(RUNNING), ENDED)
    disk.full_for = "INSERT INTO events"
    with pytest.raises(ResourceExhausted):
        remove(ledger, store)
    assert store.get(PENDING.id) == ENDED
    disk.full_for = ""
    remove(ledger, store, "user_alpha")
    assert store.get(PENDING.id) is None
    kind, _, user, state = (await told(ledger, 2))[-1]
    assert (kind, user, state) == ("removed", "user_alpha", State.EXITED)


async def test_a_removal_tells_of_an_end_that_was_not_written(store, disk):
    ledger = Ledger(store, lambda _job_id: True, first_retry=3600)
    disk.full_for = "UPDATE jobs"
    ledger.end(job_of(RUNNING), ENDED)
    remove(ledger, store)
    assert [kind for kind, *_ in await told(ledger, 2)] == ["ended", "removed"]
    assert ledger.unwritten(ENDED.id) is None
    await ledger.close()
    await told(ledger, 2)
