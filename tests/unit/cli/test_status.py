import time

import pytest

from jobworker.cli.status import local_time


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "2027-01-15 08:00:00 UTC"), ("CET-1CEST,M3.5.0,M10.5.0", "2027-01-15 09:00:00 CET")],
)
def test_a_time_is_shown_in_the_time_zone_of_the_user(monkeypatch, zone, shown):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert local_time(1_800_000_000) == shown
    finally:
        monkeypatch.undo()
        time.tzset()
