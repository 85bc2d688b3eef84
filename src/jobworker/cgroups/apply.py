"""Settings into the files of a cgroup: written, read back, and undone where that fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobworker.cgroups import parse
from jobworker.cgroups.change import JUDGED_BY, plan
from jobworker.cgroups.files import GONE
from jobworker.cgroups.limits import holds, row_of
from jobworker.errors import (
    CgroupUnavailable,
    ControllerUnavailable,
    JobWorkerError,
    LimitNotApplied,
)
from jobworker.exhaustion import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jobworker.cgroups.cgroup import Cgroup
    from jobworker.cgroups.change import Step
    from jobworker.cgroups.files import Files
    from jobworker.cgroups.limits import Limits, Setting


class Changed:
    """A change of limits that was made: `limits` are those in force now."""

    def __init__(
        self,
        applier: Applier,
        steps: Sequence[Step],
        limits: Limits,
        then: Callable[[], None],
    ) -> None:
        self.limits = limits
        self._applier = applier
        self._steps = steps
        self._then = then

    def undo(self) -> None:
        """Bring back what was there before. Raises LimitNotApplied if that fails."""
        failures = self._applier.undo(self._steps)
        try:
            self._then()
        except LimitNotApplied as error:
            failures.append(str(error))
        if failures:
            raise LimitNotApplied("; ".join(failures))


class Applier:
    """Applies settings to one cgroup. `page_size` is what the kernel rounds sizes to, in bytes."""

    def __init__(self, cgroup: Cgroup, files: Files, page_size: int) -> None:
        self._cgroup = cgroup
        self._files = files
        self._page_size = page_size

    def present(self, wanted: Iterable[Setting]) -> list[Setting]:
        """Return the settings whose file this kernel has; of io_weight's two files one will do.

        Raises ControllerUnavailable if a limit has none.
        """
        wanted = list(wanted)
        there = [setting for setting in wanted if self._files.exists(self._path(setting.file))]
        met = {setting.limit for setting in there}
        for limit in {setting.limit: None for setting in wanted}:
            if limit in met:
                continue
            rows = {s.file: row_of(s).needs for s in wanted if s.limit == limit}
            needs = " or ".join(f"{file} (needs {needs})" for file, needs in rows.items())
            raise ControllerUnavailable(
                f"cannot {self._to_apply(limit)}: this kernel does not have {needs}"
            )
        return there

    def in_force(self) -> Limits:
        """Return the limits in force. Raises CgroupUnavailable, ResourceExhausted, LimitNotApplied.

        LimitNotApplied, because whoever asks is about to change them.
        """
        self._read("cgroup.events")  # Without a cgroup, every limit would seem to be the default.
        try:
            return self._cgroup.limits()
        except (OSError, parse.MalformedText) as error:
            raise self._unreadable(error) from error

    def apply(self, wanted: Sequence[Setting]) -> None:
        """Write all settings, then read all of them back.

        Raises LimitNotApplied, ResourceExhausted, or CgroupUnavailable if the cgroup is gone.
        """
        for setting in wanted:
            self._write(setting)
        for setting in wanted:
            self._read_back(setting)

    def change(self, wanted: Sequence[Setting], then: Callable[[], None]) -> Changed:
        """Apply settings to a cgroup in use, or bring back what was there before.

        `then` follows once the whole change is undone later, and may raise LimitNotApplied. Raises
        what `apply` raises; where something could not be brought back, that is said.
        """
        names = {setting.file: None for setting in wanted} | dict.fromkeys(JUDGED_BY)
        there = [name for name in names if self._files.exists(self._path(name))]
        contents = {name: self._read(name) for name in there}
        try:
            steps = plan(wanted, contents)
        except parse.MalformedText as error:
            raise self._unreadable(error) from error
        done: list[Step] = []
        try:
            for step in steps:
                self._write(step.setting)
                done.append(step)
            for step in steps:
                self._read_back(step.setting)
            return Changed(self, steps, self.in_force(), then)
        except CgroupUnavailable:
            raise
        except BaseException as error:
            if failures := self.undo(done):
                raise LimitNotApplied(f"{error}; {'; '.join(failures)}") from error
            raise

    def undo(self, steps: Sequence[Step]) -> list[str]:
        """Bring back what was there before `steps`; return what could not be, as sentences.

        In a cgroup that is gone there is nothing to bring back.
        """
        failures = []
        for action in (self._write, self._read_back):
            for undo in (step.undo for step in reversed(steps)):
                try:
                    action(undo)
                except CgroupUnavailable:
                    return []
                except JobWorkerError as error:
                    failures.append(f"{undo.file} could not be set back to {undo.text!r}: {error}")
            if failures:
                break
        return failures

    def _unreadable(self, error: Exception) -> LimitNotApplied:
        return LimitNotApplied(
            f"cannot change the limits of job {self._cgroup.id}: those in force cannot be read: "
            f"{error}"
        )

    def _write(self, setting: Setting) -> None:
        try:
            self._files.write(self._path(setting.file), setting.text)
        except OSError as error:
            self._require_cgroup(error)
            what = self._to_apply(setting.file)
            problem = os.strerror(error.errno or 0)
            raise exhausted(what, error.errno) or LimitNotApplied(
                f"cannot {what}: the kernel refused {setting.text!r}: {problem}"
            ) from error

    def _read(self, name: str) -> str:
        try:
            return self._files.read(self._path(name))
        except OSError as error:
            self._require_cgroup(error)
            what = self._to_apply(name)
            raise exhausted(what, error.errno) or LimitNotApplied(
                f"cannot {what}: what is in force cannot be read: {error}"
            ) from error

    def _read_back(self, setting: Setting) -> None:
        what = f"cannot {self._to_apply(setting.file)}"
        try:
            content = self._files.read(self._path(setting.file))
            if holds(setting, content, self._page_size):
                return
        except (OSError, parse.MalformedText) as error:
            if isinstance(error, OSError):
                self._require_cgroup(error)
            raise LimitNotApplied(f"{what}: it cannot be read back: {error}") from error
        raise LimitNotApplied(
            f"{what}: {setting.text!r} was written but {content.strip()!r} is in force"
        )

    def _require_cgroup(self, error: OSError) -> None:
        """Raise CgroupUnavailable if a file could not be used because the cgroup is gone."""
        if error.errno in GONE and not self._files.exists(self._path("cgroup.events")):
            raise CgroupUnavailable(
                f"job {self._cgroup.id} has ended: its cgroup is gone"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._cgroup.path}/{name}"

    def _to_apply(self, what: str) -> str:
        return f"apply {what} to job {self._cgroup.id}"
