import pytest

from jobworker.output.kept import first_kept


@pytest.mark.parametrize(
    ("size", "cap", "first"),
    [
        (0, None, 0),
        (10**15, None, 0),
        (0, 100, 0),
        (99, 100, 0),
        (100, 100, 0),
        (101, 100, 1),
        (10**15, 100, 10**15 - 100),
    ],
)
def test_the_newest_bytes_up_to_the_cap_are_kept(size, cap, first):
    assert first_kept(size, cap) == first
