import pytest

from jobworker.errors import ConfigError
from jobworker.job.retention import KEEP_ALL, Candidate, Retention, Totals, choose

JOBS = [Candidate("a", 10.0, 100), Candidate("b", 20.0, 200), Candidate("c", 30.0, 400)]
TOTALS = Totals(3, 700)


def keep(**bounds):
    return Retention(**{"keep_for": None, "keep_jobs": None, "keep_bytes": None} | bounds)


def chosen(retention, *, now=30.0, held=()):
    return choose(retention, TOTALS, JOBS, now=now, held=held).remove


def test_without_a_bound_all_are_kept_and_no_time_comes():
    choice = choose(KEEP_ALL, TOTALS, JOBS, now=1e12)
    assert (choice.remove, choice.more, choice.due) == ((), False, None)


@pytest.mark.parametrize(("now", "gone"), [(14.9, ""), (15.0, "a"), (25.0, "ab"), (99.0, "abc")])
def test_a_job_goes_when_it_is_too_old(now, gone):
    assert chosen(keep(keep_for=5.0), now=now) == tuple(gone)


def test_the_next_job_that_becomes_too_old_says_when():
    choice = choose(keep(keep_for=5.0), TOTALS, JOBS, now=15.0)
    assert (choice.more, choice.due) == (False, 25.0)


@pytest.mark.parametrize(("bound", "gone"), [(1, "ab"), (2, "a"), (3, "")])
def test_what_is_too_many_goes_the_first_that_ended_first(bound, gone):
    assert chosen(keep(keep_jobs=bound)) == tuple(gone)


@pytest.mark.parametrize(
    ("bound", "gone"), [(399, "abc"), (400, "ab"), (600, "a"), (699, "a"), (700, "")]
)
def test_as_many_go_as_make_the_rest_fit_the_disk(bound, gone):
    assert chosen(keep(keep_bytes=bound)) == tuple(gone)


@pytest.mark.parametrize(
    "bounds", [{"keep_jobs": 1}, {"keep_bytes": 400}, {"keep_for": 5.0}], ids=str
)
def test_what_is_held_stays_and_no_later_one_goes_in_its_place(bounds):
    choice = choose(keep(**bounds), TOTALS, JOBS, now=26.0, held={"a"})
    assert (choice.remove, choice.held) == (("b",), {"a"})


def test_what_may_stay_is_not_said_to_be_held():
    assert choose(keep(keep_jobs=3), TOTALS, JOBS, now=30.0, held={"a"}).held == frozenset()


def test_the_sums_count_all_jobs_and_not_the_batch_alone():
    choice = choose(keep(keep_jobs=3), Totals(1000, 0), JOBS, now=30.0)
    assert (choice.remove, choice.more) == (("a", "b", "c"), True)


@pytest.mark.parametrize("field", ["keep_for", "keep_jobs", "keep_bytes"])
def test_a_bound_that_keeps_nothing_is_refused(field):
    with pytest.raises(ConfigError, match=f"{field} is 0"):
        keep(**{field: 0}).check()
