"""A listing is as fresh as a job's status: of live jobs it has what is known by now."""

import asyncio
from contextlib import closing
from dataclasses import replace

import pytest

from jobworker.errors import FailedPrecondition, InvalidArgument
from jobworker.job.catalog import Catalog
from jobworker.job.registry.listing import JobFilter
from jobworker.job.registry.reader import RegistryReader
from jobworker.job.state import JobStatus, State
from tests.support.registry import job_record
from tests.support.waiting import PATIENCE

RUNNING = JobFilter(states=frozenset([State.RUNNING]))
EXITED = JobFilter(states=frozenset([State.EXITED]))


class FakeJob:
    def __init__(self, record, *, paused=False):
        self.record = record
        self.id = record.id
        self._paused = paused

    @property
    def finished(self):
        return self.record.finished

    @property
    def paused(self):
        if self._paused is None:
            raise FailedPrecondition("the kernel cannot be asked")
        return self._paused

    def stderr_size(self):
        return None

    def output_size(self):
        return 42


@pytest.fixture
def live():
    return {}


@pytest.fixture
def late():
    return []


@pytest.fixture
def catalog(store, live, late):
    with closing(RegistryReader(store.path)) as reader:
        yield Catalog(reader, fetch=live.get, unrecorded=lambda: late)


async def numbers(catalog, asked=None, page_size=100):
    return [int(each.created_at) for each in await everything(catalog, asked, page_size)]


async def everything(catalog, asked=None, page_size=100):
    token, found = "", []
    while True:
        page = await catalog.page(asked or JobFilter(), page_size, token)
        assert len(page.entries) <= page_size
        found += page.records
        if not (token := page.next_page_token):
            return found


def add(store, live, record, now=None, **how):
    store.insert(record, "")
    live[record.id] = FakeJob(now or record, **how)


async def test_a_live_job_is_listed_as_it_is_now(store, live, catalog):
    record = job_record(1, State.RUNNING)
    now = replace(record, warnings=("new",))
    add(store, live, record, now, paused=True)
    (entry,) = (await catalog.page(JobFilter(), 0, "")).entries
    assert entry.record == now
    assert entry.output_size == 42
    assert entry.paused


async def test_a_finished_job_is_listed_without_looking_at_it(store, catalog):
    store.insert(job_record(1, output_size=7), "")
    (entry,) = (await catalog.page(JobFilter(), 0, "")).entries
    assert (entry.output_size, entry.paused) == (7, False)


async def test_a_job_that_ended_while_the_page_was_read_is_not_among_the_running(
    store, live, catalog
):
    add(store, live, job_record(1, State.RUNNING), job_record(1))
    assert await numbers(catalog, RUNNING) == []
    assert await numbers(catalog) == [1]


async def test_a_start_that_is_being_undone_is_not_listed(store, catalog):
    store.insert(job_record(1, State.PENDING), "")
    assert await numbers(catalog) == []


async def test_one_job_that_cannot_be_looked_at_does_not_fail_the_others(store, live, catalog):
    add(store, live, job_record(1, State.RUNNING), paused=None)
    add(store, live, job_record(2, State.RUNNING))
    assert await numbers(catalog) == [2, 1]


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
async def test_an_end_that_is_not_recorded_yet_is_listed_once_and_in_its_place(
    store, live, late, catalog, page_size
):
    for number in range(1, 7):
        ended = job_record(number)
        if number % 2:
            store.insert(ended, "")
        else:
            store.insert(job_record(number, State.RUNNING), "")
            late.append(FakeJob(ended))
    assert await numbers(catalog, page_size=page_size) == [6, 5, 4, 3, 2, 1]
    assert await numbers(catalog, EXITED, page_size=page_size) == [6, 5, 4, 3, 2, 1]
    assert await numbers(catalog, RUNNING, page_size=page_size) == []


@pytest.mark.parametrize("page_size", [1, 2, 3])
async def test_an_end_that_is_not_recorded_has_its_place_among_jobs_of_the_same_moment(
    store, late, catalog, page_size
):
    for number in range(1, 7):
        ended = job_record(number, created_at=5.0)
        if number % 2:
            store.insert(ended, "")
        else:
            store.insert(replace(ended, status=JobStatus(State.RUNNING), output_size=None), "")
            late.append(FakeJob(ended))
    found = [record.id for record in await everything(catalog, page_size=page_size)]
    assert found == [job_record(number).id for number in range(1, 7)]


async def test_a_token_is_for_its_filters_alone(store, catalog):
    for number in range(1, 4):
        store.insert(job_record(number), "")
    token = (await catalog.page(EXITED, 1, "")).next_page_token
    assert (await catalog.page(EXITED, 1, token)).records[0].created_at == 2
    with pytest.raises(InvalidArgument, match="page_token"):
        await catalog.page(JobFilter(), 1, token)


async def test_the_event_loop_goes_on_while_a_page_is_read(store, catalog, monkeypatch):
    begun, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    read = catalog._reader.read_page

    def slow(*arguments):
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(PATIENCE)
        return read(*arguments)

    monkeypatch.setattr(catalog._reader, "read_page", slow)
    listing = asyncio.create_task(catalog.page(JobFilter(), 0, ""))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    store.insert(job_record(1), "")
    go_on.set()
    assert len((await listing).entries) == 1


def test_a_status_alone_does_not_make_a_job_match_other_filters():
    asked = JobFilter(states=frozenset([State.EXITED]), name="n", labels={"k": "v"})
    record = job_record(1, name="n", labels={"k": "v"})
    assert asked.matches(record)
    assert not asked.matches(replace(record, spec=replace(record.spec, name="")))
    assert not asked.matches(replace(record, spec=replace(record.spec, labels={})))
    assert not asked.matches(replace(record, status=JobStatus(State.RUNNING), output_size=None))
