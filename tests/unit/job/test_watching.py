"""Who watches: from now or a token, woken by what is new, and never ahead of its client."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from jobworker.errors import EventsExpired, InvalidArgument, JobNotFound, ShuttingDown
from jobworker.job.event import EventType, JobEvent
from jobworker.job.registry.event_log import BATCH, WINDOW, EventLog
from jobworker.job.state import JobStatus, State
from jobworker.job.watching import Watching
from tests.support.waiting import PATIENCE

JOB = "5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"
OTHER = "6f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"
RUNNING = JobStatus(State.RUNNING)


class Board:
    """Events that are told and watched."""

    def __init__(self, store, *, kept=100_000):
        self._store = store
        self._log = EventLog(store, kept=kept)
        self.jobs = {JOB, OTHER}
        self.watching = Watching(self._log, self.jobs.__contains__)
        self._count = 0
        self.reads = 0
        self.watch = self.watching.watch

    def tell(self, *jobs, kind=EventType.PAUSED, owner="user_alpha"):
        with self._store.transaction():
            for job in jobs or [JOB]:
                self._count += 1
                event = JobEvent(
                    type=kind,
                    time=float(self._count),
                    job_id=job,
                    owner=owner,
                    name="",
                    status=RUNNING,
                )
                self._log.append(event)
        self.watching.wake()


@pytest.fixture
def board(store):
    return Board(store)


async def take(watch, count):
    """Return the numbers of the next events, and the token after the last one."""
    async with asyncio.timeout(PATIENCE):
        told = [await anext(watch) for _ in range(count)]
    return [each.event and each.event.time for each in told], told[-1].token


async def test_a_watch_from_now_says_at_once_where_that_is(board):
    board.tell()
    async with aclosing(board.watch()) as watch:
        (first,), token = await take(watch, 1)
        assert first is None
        board.tell()
        assert (await take(watch, 1))[0] == [2]
    async with aclosing(board.watch(token)) as watch:
        assert (await take(watch, 1))[0] == [2]


async def test_a_watcher_that_waits_is_woken(board):
    async with aclosing(board.watch()) as watch:
        await take(watch, 1)
        waiting = asyncio.create_task(take(watch, 1))
        await asyncio.sleep(0)
        board.tell()
        assert (await waiting)[0] == [1]


async def test_any_number_of_watchers_get_every_event_once_in_order(board):
    async def watch(count):
        async with aclosing(board.watch(token)) as watch:
            return await take(watch, count)

    async with aclosing(board.watch()) as now:
        _, token = await take(now, 1)
    watchers = [asyncio.create_task(watch(100)) for _ in range(20)]
    for _ in range(100):
        board.tell()
        await asyncio.sleep(0)
    for numbers, _ in await asyncio.gather(*watchers):
        assert numbers == list(range(1, 101))


async def test_a_watch_taken_up_anywhere_has_no_gap_and_no_duplicate(board):
    async with aclosing(board.watch()) as watch:
        _, token = await take(watch, 1)
    seen = []
    for step in range(1, BATCH * 2):
        board.tell(*[JOB] * 3)
        async with aclosing(board.watch(token)) as watch:
            numbers, token = await take(watch, min(step, 3))
        seen += numbers
    assert seen == list(range(1, len(seen) + 1))


async def test_a_watcher_that_stands_still_holds_a_batch_and_misses_nothing(board):
    async with aclosing(board.watch()) as watch:
        await take(watch, 1)
        board.tell(*[JOB] * (BATCH * 3))
        assert (await take(watch, 1))[0] == [1]
        board.tell()
        assert (await take(watch, BATCH * 3))[0] == list(range(2, BATCH * 3 + 2))


async def test_a_watcher_that_is_too_slow_is_told_so(store):
    board = Board(store, kept=10)
    async with aclosing(board.watch()) as watch:
        await take(watch, 1)
        board.tell(*[JOB] * 200)
        with pytest.raises(EventsExpired):
            await take(watch, 1)


async def test_only_one_job_or_one_owners_jobs_are_watched(board):
    async with aclosing(board.watch()) as watch:
        _, token = await take(watch, 1)
    board.tell(OTHER)
    board.tell(JOB, owner="user_bravo")
    for filters in ({"job_id": JOB}, {"owner": "user_bravo"}):
        async with aclosing(board.watch(token, **filters)) as watch:
            assert (await take(watch, 1))[0] == [2]


async def test_where_many_events_are_left_out_the_token_moves_on(board):
    async with aclosing(board.watch()) as watch:
        _, token = await take(watch, 1)
    board.tell(*[OTHER] * WINDOW)
    async with aclosing(board.watch(token, job_id=JOB)) as watch:
        (nothing,), later = await take(watch, 1)
        assert nothing is None
        board.tell(JOB)
        assert (await take(watch, 1))[0] == [WINDOW + 1]
    async with aclosing(board.watch(later)) as watch:
        assert (await take(watch, 1))[0] == [WINDOW + 1]


async def test_watching_one_job_ends_with_its_removal(board):
    async with aclosing(board.watch(job_id=JOB)) as watch:
        _, token = await take(watch, 1)
        board.jobs.discard(JOB)
        board.tell(OTHER, kind=EventType.REMOVED)
        board.tell(JOB, kind=EventType.REMOVED)
        assert (await take(watch, 1))[0] == [2]
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    async with aclosing(board.watch(token, job_id=JOB)) as watch:
        (number,), end = await take(watch, 1)
        assert number == 2
    with pytest.raises(JobNotFound):
        await take(board.watch(end, job_id=JOB), 1)


async def test_watching_all_jobs_goes_on_after_a_removal(board):
    async with aclosing(board.watch()) as watch:
        await take(watch, 1)
        board.tell(kind=EventType.REMOVED)
        board.tell()
        assert (await take(watch, 2))[0] == [1, 2]


async def test_a_job_that_is_not_known_cannot_be_watched(board):
    board.jobs.discard(JOB)
    with pytest.raises(JobNotFound, match=JOB):
        await take(board.watch(job_id=JOB), 1)


async def test_watching_a_job_that_did_not_start_after_all_ends(board):
    async with aclosing(board.watch(job_id=JOB)) as watch:
        await take(watch, 1)
        waiting = asyncio.create_task(take(watch, 1))
        await asyncio.sleep(0)
        board.jobs.discard(JOB)
        board.watching.wake()
        with pytest.raises(JobNotFound):
            await waiting


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"job_id": "../x"}, "job_id"), ({"resume_token": "x"}, "resume_token")],
)
async def test_what_is_malformed_is_refused(board, arguments, field):
    with pytest.raises(InvalidArgument) as refusal:
        await take(board.watch(**arguments), 1)
    assert refusal.value.field == field


async def test_all_watching_ends_when_the_service_is_left(board, store):
    async with aclosing(board.watch()) as watch:
        await take(watch, 1)
        waiting = asyncio.create_task(take(watch, 1))
        await asyncio.sleep(0)
        board.watching.close()
        store.close()
        with pytest.raises(ShuttingDown):
            await waiting
    with pytest.raises(ShuttingDown):
        await take(board.watch(), 1)
