import sqlite3
from dataclasses import replace

import pytest

from jobworker.job.record import JobRecord
from jobworker.job.registry import schema
from jobworker.job.registry.ended import EndedJobs
from jobworker.job.registry.store import Store
from jobworker.job.retention import Candidate, Totals
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, Reason, State


def job(name, request_id=""):
    spec = JobSpec(command="true", request_id=request_id, labels={"k": "v"})
    return JobRecord(id=name, owner="alpha", spec=spec, created_at=1.0)


def ended(record, at):
    return replace(
        record,
        status=JobStatus(State.EXITED, exit_code=0, reason=Reason.EXITED),
        ended_at=at,
        output_size=5,
    )


@pytest.fixture
def jobs(store):
    """Three jobs: b has ended first, then a; c runs."""
    for name, at in (("a", 20.0), ("b", 10.0), ("c", None)):
        store.insert(job(name, f"request-{name}"), "")
        if at is not None:
            store.update(ended(job(name), at))
    return EndedJobs(store)


def test_the_one_that_ended_first_comes_first_and_none_that_runs(jobs):
    assert jobs.oldest(None, 5) == [Candidate("b", 10.0, 0), Candidate("a", 20.0, 0)]


def test_a_step_goes_on_where_the_last_one_ended_also_among_equal_times(store, jobs):
    for name in ("d", "e"):
        store.insert(ended(job(name), 20.0), "")
    first = jobs.oldest(None, 2)
    assert [each.id for each in [*first, *jobs.oldest(first[-1], 2)]] == ["b", "a", "d", "e"]


@pytest.mark.parametrize("method", ["oldest", "unmeasured"])
def test_a_step_looks_at_no_more_than_it_returns(store, jobs, method):
    with store.transaction():
        for number in range(2000):
            store.insert(ended(job(f"x{number}"), 100.0 + number), "")
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    # Called for every 100 instructions of SQLite's virtual machine.
    store._connection.set_progress_handler(count, 100)
    if method == "oldest":
        jobs.oldest(Candidate("", 1000.0, 0), 5)
    else:
        jobs.unmeasured(5)
    assert steps <= 5


def test_the_sums_follow_ends_measures_and_removals(store, jobs):
    assert jobs.totals() == Totals(2, 0)
    jobs.measured([("a", 100), ("b", 4096)])
    assert jobs.totals() == Totals(2, 4196)
    store.update(ended(job("c"), 30.0))
    jobs.measured([("b", 96), ("c", 4)])
    assert jobs.totals() == Totals(3, 200)
    store.update(replace(ended(job("c"), 30.0), usage={"oom_kills": 1}))
    assert jobs.totals() == Totals(3, 200)
    store.delete("b")
    assert jobs.totals() == Totals(2, 104)
    store.insert(ended(job("d"), 1.0), "")
    assert jobs.totals() == Totals(3, 104)
    assert jobs.begin_removing(["a", "c", "d"]) == {"a", "c", "d"}
    assert jobs.totals() == Totals(0, 0)


def test_a_running_job_that_is_deleted_changes_no_sum(store, jobs):
    store.delete("c")
    assert jobs.totals() == Totals(2, 0)


def test_what_is_measured_is_not_asked_for_again(jobs):
    assert sorted(jobs.unmeasured(5)) == ["a", "b"]
    jobs.measured([("a", 0)])
    assert jobs.unmeasured(5) == ["b"]


def test_a_job_that_is_removed_is_found_by_nobody_and_leaves_its_request_free(store, jobs):
    assert jobs.begin_removing(["a", "never-there"]) == {"a"}
    assert store.get("a") is None
    assert store.find_request("alpha", "request-a") is None
    assert store.read("SELECT * FROM labels WHERE id = 'a'", {}) == []
    store.insert(job("new", "request-a"), "")
    assert jobs.removing(5) == ["a"]


def test_a_removal_is_remembered_until_its_files_are_gone(tmp_path, jobs):
    jobs.begin_removing(["a", "b"])
    other = Store.open(tmp_path / "jobs.db")
    assert EndedJobs(other).removing(5) == ["a", "b"]
    assert EndedJobs(other).removing(1) == ["a"]
    assert EndedJobs(other).removing(1, {"a"}) == ["b"]
    other.close()
    jobs.removed(["a", "b"])
    assert jobs.removing(5) == []


def test_a_failure_forgets_no_job_by_half(store, jobs):
    def fail(statement, values):
        if "'b'" in statement or values.get("id") == "b":
            raise sqlite3.OperationalError("disk full")
        return write(statement, values)

    write, store.write = store.write, fail
    with pytest.raises(Exception, match="disk full"):
        jobs.begin_removing(["a", "b"])
    store.write = write
    assert store.get("a") is not None
    assert jobs.removing(5) == []


def test_the_sums_of_an_older_registry_are_made_once(tmp_path):
    connection = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    for statement in schema.MIGRATIONS[1]:
        connection.execute(statement)
    for name, state, size in (("a", "exited", 5), ("b", "exited", 7), ("c", "running", None)):
        connection.execute(
            """
            INSERT INTO jobs (id, owner, stdin_digest, spec, limits, warnings, state, message,
                              created_at, ended_at, output_size, usage)
            VALUES (?, 'alpha', '', '{"command": "true"}', '{}', '[]', ?, '', 1.0, 2.0, ?, '{}')
            """,
            (name, state, size),
        )
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = Store.open(tmp_path / "old.db")
    assert EndedJobs(store).totals() == Totals(2, 0)
    assert EndedJobs(store).unmeasured(5) == ["a", "b"]
    store.close()
