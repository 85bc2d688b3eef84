"""A host for a Service: kernel and shim are fakes, its directories and its registry are real."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from jobworker.cgroups.devices import Devices
from jobworker.job import Service
from jobworker.testing.cgroupfs import FakeCgroupTree

if TYPE_CHECKING:
    from pathlib import Path

    from jobworker.job import Change
    from jobworker.testing.shim import FakeShim


class FakeHost:
    """The places and the fakes; `changes` are those of which a service here has told."""

    def __init__(self, directory: Path, shim: FakeShim) -> None:
        self.directory = directory
        self.log_dir = directory / "log"
        self.shim = shim
        self.tree = FakeCgroupTree()
        self.changes: list[Any] = []

    def service(self, **settings: Any) -> Service:
        """Return a service on this host, not entered yet."""
        return Service(
            log_dir=self.log_dir,
            state_dir=self.directory / "state",
            run_dir=self.directory / "run",
            on_change=self.on_change,
            cgroups_service=self.tree.service(devices=Devices(self.directory / "sys")),
            connect=self.shim.connect,
            **settings,
        )

    def on_change(self, change: Change) -> None:
        """Keep what has happened, to which job, and who asked for it."""
        self.changes.append((change.event, change.job.id, change.user))

    def registry(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Execute a statement in the registry, beside whatever server has it open."""
        path = self.directory / "state" / "jobs.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as registry:
            return registry.execute(statement, values).fetchall()
