"""Pages of a listing, from a real registry: their order, their filters and what they may cost."""

import itertools
import random
from contextlib import closing

import pytest

from jobworker.errors import InvalidArgument, RegistryDamaged
from jobworker.job.registry import listing
from jobworker.job.registry.listing import JobFilter
from jobworker.job.registry.reader import RegistryReader
from jobworker.job.state import State
from tests.support.registry import job_record

RUNNING = frozenset([State.RUNNING])


@pytest.fixture
def reader(store):
    with closing(RegistryReader(store.path)) as reader:
        yield reader


def pages(reader, asked=None, count=100):
    position = None
    while True:
        found = reader.read_page(asked or JobFilter(), position, count)
        yield found.records
        if (position := found.end) is None:
            return


def everything(reader, asked=None, count=100):
    return [record for page in pages(reader, asked, count) for record in page]


def test_the_newest_jobs_come_first(store, reader):
    for number in (2, 1, 3):
        store.insert(job_record(number), "")
    assert [record.created_at for record in everything(reader)] == [3, 2, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_jobs_of_the_same_moment_are_each_listed_once(store, reader, count):
    for number in range(1, 8):
        store.insert(job_record(number, created_at=5.0), "")
    found = [record.id for record in everything(reader, count=count)]
    assert found == sorted(found)
    assert len(found) == 7


def test_a_full_page_that_is_the_last_one_says_so(store, reader):
    for number in range(1, 5):
        store.insert(job_record(number), "")
    assert [len(page) for page in pages(reader, count=2)] == [2, 2]


def test_jobs_added_and_removed_between_pages_neither_repeat_nor_hide_others(store, reader):
    for number in range(1, 7):
        store.insert(job_record(number), "")
    found = pages(reader, count=2)
    first = next(found)
    store.delete(first[-1].id)
    store.insert(job_record(10), "")
    rest = [record.created_at for page in found for record in page]
    assert rest == [4, 3, 2, 1]


def scattered(store, count=120):
    """Fill a registry with jobs that differ in all that is filtered by."""
    chance = random.Random(7)
    records = []
    for number in range(1, count + 1):
        labels = {key: value for key in ("a", "b") if (value := chance.choice(["", "1", "2"]))}
        record = job_record(
            number,
            chance.choice([*State]),
            owner=chance.choice(["alpha", "bravo"]),
            name=chance.choice(["", "n", "m"]),
            labels=labels,
        )
        store.insert(record, "")
        records.append(record)
    return records[::-1]


FILTERS = [
    JobFilter(states=states, owner=owner, name=name, labels=labels, **times)
    for states, owner, name, labels, times in itertools.product(
        (frozenset(), RUNNING, frozenset([State.EXITED, State.LOST, State.PENDING])),
        ("", "bravo"),
        ("", "m"),
        ({}, {"a": "1"}, {"a": "1", "b": "2"}),
        ({}, {"created_after": 20.0, "created_before": 100.0}),
    )
]


def test_every_combination_of_filters_lists_what_matches(store, reader):
    records = scattered(store)
    for asked in FILTERS:
        assert everything(reader, asked, count=7) == [r for r in records if asked.matches(r)], asked


def test_a_page_costs_no_more_than_a_bounded_number_of_jobs(store):
    records = scattered(store)
    with closing(RegistryReader(store.path, scanned=10)) as reader:
        for asked in FILTERS:
            found = [*pages(reader, asked, count=7)]
            assert [*itertools.chain(*found)] == [r for r in records if asked.matches(r)], asked
        asked = JobFilter(owner="bravo", name="m", states=RUNNING, labels={"a": "1"})
        assert [] in [*pages(reader, asked, count=7)]


def test_the_shortest_way_to_the_jobs_is_taken(store):
    for number in range(1, 101):
        labels = {"common": "1"} | ({"rare": "1"} if number == 50 else {})
        store.insert(job_record(number, labels=labels), "")
    with closing(RegistryReader(store.path, scanned=10)) as reader:
        asked = JobFilter(owner="user_alpha", labels={"common": "1", "rare": "1"})
        assert [len(page) for page in pages(reader, asked)] == [1]


def test_a_page_has_no_more_bytes_than_a_message_should(store):
    for number in range(1, 7):
        store.insert(job_record(number, args=("x" * 10_000,)), "")
    with closing(RegistryReader(store.path, size=25_000)) as reader:
        found = [*pages(reader)]
    assert [record.created_at for page in found for record in page] == [6, 5, 4, 3, 2, 1]
    assert max(map(len, found)) == 2


def test_a_job_that_is_larger_than_a_page_has_one_of_its_own(store):
    for number in range(1, 4):
        store.insert(job_record(number, args=("x" * 5000,)), "")
    with closing(RegistryReader(store.path, size=3000)) as reader:
        assert [len(page) for page in pages(reader)] == [1, 1, 1]


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_every_query_walks_an_index_and_sorts_a_bounded_part_at_most(store, asked):
    position = listing.Position(50.0, "x")
    for walk in listing.walks(asked):
        query = listing.candidates(asked, walk, position, 10)
        plan = store.read(f"EXPLAIN QUERY PLAN {query.sql}", dict(query.values))
        steps = [row["detail"] for row in plan]
        assert not [step for step in steps if step.startswith("SCAN jobs")], steps
        assert [step for step in steps if "created_at<" in step], steps


def test_a_label_of_another_job_of_the_same_moment_does_not_count(store, reader):
    store.insert(job_record(1, created_at=5.0, labels={"a": "1"}), "")
    store.insert(job_record(2, created_at=5.0, labels={"b": "2"}), "")
    assert everything(reader, JobFilter(labels={"a": "1", "b": "2"})) == []


def test_a_page_is_of_one_moment(store, reader, monkeypatch):
    for number in (1, 2):
        store.insert(job_record(number), "")
    find = reader._positions

    def find_and_remove(*arguments):
        found = find(*arguments)
        store.delete(job_record(1).id)
        return found

    monkeypatch.setattr(reader, "_positions", find_and_remove)
    assert [record.created_at for record in everything(reader)] == [2, 1]
    assert [record.created_at for record in everything(reader)] == [2]


@pytest.mark.parametrize("wrong", ["created_at = 9.0", "number = 9"])
def test_an_index_that_disagrees_with_its_jobs_is_damage_and_keeps_no_other_page_back(
    store, reader, wrong
):
    store.insert(job_record(1, labels={"k": "v"}), "")
    store.write(f"UPDATE labels SET {wrong}", {})  # noqa: S608
    with pytest.raises(RegistryDamaged, match="not where an index has it"):
        everything(reader, JobFilter(labels={"k": "v"}))
    assert len(everything(reader)) == 1


def test_labels_go_with_their_job(store):
    store.insert(job_record(1, labels={"k": "v", "quote'": '"'}), "")
    assert len(store.read("SELECT * FROM labels", {})) == 2
    store.delete(job_record(1).id)
    assert store.read("SELECT * FROM labels", {}) == []


def test_a_reader_does_not_keep_the_log_from_being_emptied(store, reader):
    store.insert(job_record(1), "")
    everything(reader)
    ((busy, _, _),) = store.read("PRAGMA wal_checkpoint(TRUNCATE)", {})
    assert not busy


def test_a_reader_cannot_write(reader, store):
    everything(reader)
    with pytest.raises(Exception, match="readonly"):
        reader._connection.execute("DELETE FROM jobs")


@pytest.mark.parametrize(("asked", "size"), [(0, 100), (1, 1), (1000, 1000)])
def test_a_page_size_is_what_was_asked_for_or_a_hundred(asked, size):
    assert listing.page_size(asked) == size


@pytest.mark.parametrize("asked", [-1, 1001])
def test_a_page_size_that_is_out_of_bounds_is_refused(asked):
    with pytest.raises(InvalidArgument, match="page_size"):
        listing.page_size(asked)


def test_more_labels_than_a_job_can_have_are_refused():
    with pytest.raises(InvalidArgument, match="labels"):
        JobFilter(labels={str(number): "" for number in range(65)}).check()
