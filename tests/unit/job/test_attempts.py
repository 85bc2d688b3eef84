from jobworker.job.attempts import Attempts


def test_each_failure_doubles_the_pause_up_to_the_longest():
    attempts = Attempts(first_pause=10.0, longest_pause=30.0)
    now, pauses = 0.0, []
    for _ in range(4):
        attempts.failed("x", now)
        pauses.append(attempts.pause(now))
        now += 100
    assert pauses == [10.0, 20.0, 30.0, 30.0]


def test_only_the_first_failure_is_news():
    attempts = Attempts()
    assert [attempts.failed("x", now) for now in (0.0, 1.0)] == [True, False]
    attempts.succeeded("x")
    assert attempts.failed("x", 2.0)


def test_what_failed_is_held_until_its_pause_is_over():
    attempts = Attempts(first_pause=10.0)
    attempts.failed("x", 0.0)
    assert attempts.held(9.9) == {"x"}
    assert attempts.held(10.0) == frozenset()


def test_the_pause_is_that_of_the_one_that_is_due_first():
    attempts = Attempts(first_pause=10.0)
    assert attempts.pause(0.0) is None
    attempts.failed("x", 0.0)
    attempts.failed("y", 5.0)
    assert attempts.pause(8.0) == 2.0
    assert attempts.pause(50.0) == 0.0


def test_what_has_succeeded_is_forgotten():
    attempts = Attempts()
    attempts.failed("x", 0.0)
    attempts.succeeded("x")
    attempts.succeeded("x")
    assert len(attempts) == 0
