"""The budget of all followers: with a clock that a test sets."""

import pytest

from jobworker.output.budget import Budget

TOTAL = 6400


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def budget(clock):
    return Budget(TOTAL, slow_after=1.0, clock=clock)


def test_one_follower_may_have_all_of_it(budget):
    assert budget.join().size() == TOTAL


def test_followers_share_it_evenly(budget):
    shares = [budget.join() for _ in range(4)]
    assert [share.size() for share in shares] == [TOTAL // 4] * 4


def test_who_leaves_gives_its_part_back(budget):
    first, second = budget.join(), budget.join()
    second.give(1000)
    second.leave()
    assert first.size() == TOTAL


def test_who_holds_a_chunk_for_a_moment_is_not_slow(budget, clock):
    first, second = budget.join(), budget.join()
    second.give(3200)
    clock.now += 0.9
    assert first.size() == TOTAL // 2


def test_what_the_slow_hold_is_gone_and_the_others_share_the_rest(budget, clock):
    first, *others = [budget.join() for _ in range(64)]
    for other in others:
        other.give(100)
    clock.now += 1
    assert first.size() == TOTAL - 63 * 100


def test_a_slow_one_that_comes_back_shares_again(budget, clock):
    first, second, third = (budget.join() for _ in range(3))
    second.give(1000)
    third.give(1000)
    clock.now += 1
    assert first.size() == TOTAL - 2000
    second.take_back()
    assert [first.size(), second.size()] == [(TOTAL - 1000) // 2] * 2


def test_a_slow_one_that_leaves_gives_back_what_it_held(budget, clock):
    first, second, third = (budget.join() for _ in range(3))
    second.give(1000)
    third.give(1000)
    clock.now += 1
    first.size()
    second.leave()
    assert first.size() == TOTAL - 1000


def test_who_holds_nothing_is_never_slow(budget, clock):
    first, second = budget.join(), budget.join()
    second.give(1000)
    second.take_back()
    clock.now += 100
    assert first.size() == TOTAL // 2


def test_slow_ones_that_hold_it_all_leave_a_reader_as_much_as_if_all_had_the_same(budget, clock):
    first, *others = [budget.join() for _ in range(64)]
    for other in others:
        other.give(TOTAL)
    clock.now += 1
    assert first.size() == TOTAL // 64


def test_who_is_given_more_keeps_its_place_by_the_last_time(budget, clock):
    first, second, third = (budget.join() for _ in range(3))
    second.give(1000)
    third.give(1000)
    clock.now += 0.6
    second.take_back()
    second.give(1000)
    clock.now += 0.6
    assert first.size() == (TOTAL - 1000) // 2


def test_nobody_prompt_is_no_division_by_zero(budget, clock):
    only = budget.join()
    only.give(400)
    clock.now += 1
    assert only.size() == TOTAL


def test_who_never_held_anything_may_come_back_and_leave(budget):
    first, second = budget.join(), budget.join()
    second.take_back()
    second.leave()
    assert first.size() == TOTAL
