"""Changes of running jobs: in turn, and to their end."""

import asyncio

import pytest

from jobworker.job.turns import Turns
from tests.support.waiting import PATIENCE


@pytest.fixture
def turns():
    return Turns()


async def test_changes_of_one_job_come_one_after_the_other(turns):
    seen = []

    async def change(name):
        seen.append(f"{name} begins")
        await asyncio.sleep(0)
        seen.append(f"{name} ends")

    await asyncio.gather(*(turns.run("job", lambda n=n: change(n)) for n in "abc"))
    assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_changes_of_two_jobs_do_not_wait_for_each_other(turns):
    met = asyncio.Barrier(2)
    await asyncio.wait_for(
        asyncio.gather(*(turns.run(job, met.wait) for job in ("one", "other"))), PATIENCE
    )


async def test_a_caller_that_goes_away_does_not_end_a_change(turns):
    go_on, done = asyncio.Event(), asyncio.Event()

    async def change():
        await go_on.wait()
        done.set()

    caller = asyncio.create_task(turns.run("job", change))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    (task,) = turns.under_way
    go_on.set()
    await task
    assert done.is_set()
    assert turns.under_way == frozenset()


async def test_a_change_that_fails_tells_its_caller_and_lets_the_next_begin(turns):
    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await turns.run("job", fail)
    await asyncio.wait_for(turns.run("job", lambda: asyncio.sleep(0)), PATIENCE)


async def test_closing_cancels_what_is_under_way(turns):
    caller = asyncio.create_task(turns.run("job", asyncio.Event().wait))
    await asyncio.sleep(0)
    await turns.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
