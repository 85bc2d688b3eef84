"""Settings that hold for these tests: a busy machine is no failure of a pure function."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("cgroups", deadline=None)
settings.load_profile("cgroups")
