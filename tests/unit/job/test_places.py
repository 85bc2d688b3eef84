import pytest

from jobworker.errors import ConfigError, ResourceExhausted
from jobworker.job.places import Places, RunningLimits


def test_without_limits_there_is_always_a_place():
    places = Places(RunningLimits())
    places.fill((str(number), "alpha") for number in range(1000))
    places.check("alpha")
    assert len(places) == 1000


def test_the_last_place_is_the_last():
    places = Places(RunningLimits(total=2))
    places.take("a", "alpha")
    places.check("bravo")
    places.take("b", "bravo")
    with pytest.raises(ResourceExhausted, match=r"2 jobs run here.*at most 2.*max-running-jobs\)"):
        places.check("charlie")


def test_one_user_takes_no_place_of_another():
    places = Places(RunningLimits(per_user=1))
    places.take("a", "alpha")
    with pytest.raises(
        ResourceExhausted, match=r"1 job runs for alpha.*at most 1.*max-running-jobs-per-user\)"
    ):
        places.check("alpha")
    places.check("bravo")


def test_a_place_that_is_given_back_is_free_once():
    places = Places(RunningLimits(total=2, per_user=2))
    places.fill([("a", "alpha"), ("b", "alpha")])
    places.give_back("a")
    places.give_back("a")
    places.check("alpha")
    places.take("c", "alpha")
    with pytest.raises(ResourceExhausted):
        places.check("alpha")


def test_a_job_has_one_place_however_often_it_takes_one():
    places = Places(RunningLimits())
    places.take("a", "alpha")
    places.take("a", "alpha")
    places.give_back("a")
    assert len(places) == 0
    assert not places._taken


@pytest.mark.parametrize("field", ["total", "per_user"])
def test_a_limit_that_lets_nothing_start_is_refused(field):
    with pytest.raises(ConfigError, match="at least 1"):
        RunningLimits(**{field: 0}).check()
