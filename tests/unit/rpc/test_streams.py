import pytest

from jobworker.errors import ResourceExhausted
from jobworker.rpc.streams import StreamPlaces


def test_a_user_has_so_many_places_and_gets_each_back():
    places = StreamPlaces(2)
    for _ in range(3):
        with (
            places.taken("alice"),
            places.taken("alice"),
            places.taken("bob"),
            pytest.raises(ResourceExhausted, match="alice has 2 open, as many as") as refusal,
            places.taken("alice"),
        ):
            pytest.fail("there was a third place")
        assert "--max-streams-per-user" in str(refusal.value)


def test_a_place_is_given_back_by_who_fails_too():
    places = StreamPlaces(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="oops"), places.taken("alice"):
            raise ValueError("oops")


def test_without_a_limit_there_are_always_places():
    places = StreamPlaces(None)
    with places.taken("alice"), places.taken("alice"):
        pass
