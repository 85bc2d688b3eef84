import pytest

from jobworker.errors import ConfigError, ResourceExhausted
from jobworker.job.slots import RunningLimits, Slots


def test_without_limits_there_is_always_a_slot():
    slots = Slots(RunningLimits())
    slots.fill((str(number), "alpha") for number in range(1000))
    slots.check("alpha")
    assert len(slots) == 1000


def test_the_last_slot_is_the_last():
    slots = Slots(RunningLimits(total=2))
    slots.take("a", "alpha")
    slots.check("bravo")
    slots.take("b", "bravo")
    with pytest.raises(ResourceExhausted, match=r"2 jobs run here.*at most 2.*max-running-jobs\)"):
        slots.check("charlie")


def test_one_user_takes_no_slot_of_another():
    slots = Slots(RunningLimits(per_user=1))
    slots.take("a", "alpha")
    with pytest.raises(
        ResourceExhausted, match=r"1 job runs for alpha.*at most 1.*max-running-jobs-per-user\)"
    ):
        slots.check("alpha")
    slots.check("bravo")


def test_a_slot_that_is_given_back_is_free_once():
    slots = Slots(RunningLimits(total=2, per_user=2))
    slots.fill([("a", "alpha"), ("b", "alpha")])
    slots.give_back("a")
    slots.give_back("a")
    slots.check("alpha")
    slots.take("c", "alpha")
    with pytest.raises(ResourceExhausted):
        slots.check("alpha")


def test_a_job_has_one_slot_however_often_it_takes_one():
    slots = Slots(RunningLimits())
    slots.take("a", "alpha")
    slots.take("a", "alpha")
    slots.give_back("a")
    assert len(slots) == 0
    assert not slots._taken


@pytest.mark.parametrize("field", ["total", "per_user"])
def test_a_limit_that_lets_nothing_start_is_refused(field):
    with pytest.raises(ConfigError, match="at least 1"):
        RunningLimits(**{field: 0}).check()
