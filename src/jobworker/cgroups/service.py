"""The tree of all jobs' cgroups: enabling controllers, creating and removing cgroups.

Nothing above the root that it was given is ever written to. Several servers may share a root.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobworker.cgroups import change, parse, protection, weights
from jobworker.cgroups.apply import Applier, Changed
from jobworker.cgroups.cgroup import Cgroup
from jobworker.cgroups.controllers import CONTROLLERS, Controller, Hierarchy, diagnose, unbound
from jobworker.cgroups.devices import Devices
from jobworker.cgroups.files import GONE, Files
from jobworker.cgroups.limits import DEFAULT_WEIGHT, Limits, Setting, settings
from jobworker.cgroups.mounts import Mounts
from jobworker.cgroups.root import RootDirectory, problem
from jobworker.errors import CgroupUnavailable, ControllerUnavailable, LimitNotApplied
from jobworker.exhaustion import exhausted
from jobworker.ids import parse_job_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobworker.cgroups.mounts import Mount, Subsystem

NO_LIMITS: Final = Limits()
DIRECTORY: Final = "jobworker"
"""The cgroup below the root that holds all jobs."""


_NO_MORE_CGROUPS: Final = {
    errno.EAGAIN: "cgroup.max.depth or cgroup.max.descendants of a cgroup above it is reached",
    errno.ENOSPC: "the kernel has no room for another cgroup; remove some",
}
"""What mkdir(2) means in a cgroup (cgroup-v2.rst, and cgroup_mkdir in kernel/cgroup/cgroup.c)."""


_BOUNDS: Final = {"cgroup.max.depth": "32", "cgroup.max.descendants": "1024"}
"""What a job may nest in its cgroup (Linux 4.14). A job that runs as root can change it."""


class Service:
    """Creates and removes the cgroups of jobs below ``root/jobworker``.

    A process that is in `root` itself when it sets the Service up is moved to ``root/server``.

    `root` is a directory of a cgroup2 file system, or a place to mount one at. The other arguments
    are the boundaries to the kernel, which `jobworker.testing` has stand-ins for.
    """

    def __init__(
        self,
        root: Path = Path("/cgroup2"),
        *,
        files: Files | None = None,
        mounts: Mounts | None = None,
        devices: Devices | None = None,
    ) -> None:
        self.root = root
        self.directory = root / DIRECTORY
        self._files = files or Files()
        self._mounts = mounts or Mounts()
        self._devices = devices or Devices()
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._root = RootDirectory(root, self._files, self._mounts)
        self._refusals: dict[str, str] = {}
        # Limits may be changed in threads, and each claim adds up what all jobs have.
        self._claiming = threading.Lock()

    def setup(self) -> None:
        """Mount cgroup2 if need be, create the jobs' directory and enable controllers in it.

        A process that is in the root itself leaves it for a leaf, which makes room for controllers.
        May be called again at any time. A controller that cannot be enabled is no error here but
        when a limit needs it: see `controllers`. Raises CgroupUnavailable.
        """
        self._root.prepare()
        directory = str(self.directory)
        try:
            self._files.make_cgroup(directory)
        except FileExistsError:
            pass
        except OSError as error:
            raise _not_created(f"the cgroup {directory}", error) from error
        self._check_writable()
        self._root.leave()
        self._refusals = {}
        for path in (str(self.root), directory):
            self._enable_controllers(path)

    def check_setup(self) -> str:
        """Return what `setup` would do, in words; only looks.

        Raises CgroupUnavailable, with the same words as `setup`, if it could not be done. What
        nobody can foresee is a kernel that refuses for reasons of its own (a security module).
        """
        home = f"jobs will live in {self.directory}"
        if preparation := self._root.check_prepare():
            return f"{home}; {preparation}"
        move = self._root.foreseen_move()
        if self._files.exists(str(self.directory)):
            self._check_writable()
            return f"{home}, which is there{move}"
        try:
            self._files.check_writable(str(self.root))
        except OSError as error:
            raise _not_created(f"the cgroup {self.directory}", error) from error
        return f"{home}, which will be created{move}"

    def create_cgroup(self, job_id: str, limits: Limits = NO_LIMITS) -> Cgroup:
        """Create a job's cgroup; its limits are in force when this returns.

        Either all limits are applied and read back, or nothing is left behind. Raises
        InvalidArgument, ControllerUnavailable, LimitNotApplied, CgroupUnavailable or
        ResourceExhausted (the kernel takes no more cgroups).
        """
        cgroup = self.cgroup(job_id)
        limits.check()
        wanted = settings(self._devices.resolve(limits))
        if not self._are_enabled(wanted):
            # Another server's cleanup may have taken the directory away.
            self.setup()
        self._require_controllers(job_id, wanted)
        self._make(cgroup)
        try:
            self._require_domain(cgroup)
            self._bound(cgroup)
            applier = self._applier(cgroup)
            applier.apply(applier.present(wanted))
            self._claim_protection(job_id, limits)
        except BaseException as error:
            try:
                cgroup.remove()
            except (OSError, parse.MalformedText) as leftover:
                error.add_note(f"the cgroup is still there: {leftover}")
            try:
                self._claim_protection(job_id, limits)
            except LimitNotApplied as leftover:
                error.add_note(str(leftover))
            raise
        return cgroup

    def update_limits(self, job_id: str, limits: Limits) -> Changed:
        """Change limits of a job's cgroup; what is not given stays, MAX takes a limit away.

        Either all of them are in force and read back when this returns, or those from before are.
        It may take long: the kernel reclaims memory above a lower memory.high or memory.max before
        the write returns. So it may run in a thread, and never sets up. Raises InvalidArgument,
        ControllerUnavailable, LimitNotApplied (which says so if something could not be set back),
        ResourceExhausted, or CgroupUnavailable if the cgroup is gone.
        """
        applier = self._applier(self.cgroup(job_id))
        change.check(applier.in_force(), limits)
        wanted = settings(self._devices.resolve(limits))
        self._require_controllers(job_id, wanted)
        claim = functools.partial(self._claim_protection, job_id, limits)
        changed = applier.change(applier.present(wanted), claim)
        try:
            claim()
        except LimitNotApplied as error:
            try:
                changed.undo()
            except LimitNotApplied as another:
                raise LimitNotApplied(f"{error}; {another}") from error
            raise
        return changed

    def warnings(self, limits: Limits) -> tuple[str, ...]:
        """Return advice that keeps no job from starting: what is hardly meant, or has no effect."""
        if limits.io_weight in (None, DEFAULT_WEIGHT) or not (why := self.weights_obstacle()):
            return limits.warnings()
        return (*limits.warnings(), f"io_weight {why}")

    def weights_obstacle(self) -> str:
        """Return that weights of disk I/O have no effect here, and why; empty if they have one."""
        try:
            return weights.obstacle(self._mounts.table(), self._files, self._devices)
        except (OSError, parse.MalformedText) as error:
            return f"may have no effect: cannot look at io.cost.qos: {error}"

    def cgroup(self, job_id: str) -> Cgroup:
        """Return the handle of a job's cgroup, whether it is there or not; touches nothing.

        Raises InvalidArgument if `job_id` is not a UUID in its usual form.
        """
        return Cgroup(self.directory / parse_job_id(job_id), self._files)

    def remove_cgroup(self, job_id: str) -> None:
        """Remove a job's cgroup, and those nested in it; one that is missing is fine.

        Raises OSError with EBUSY if there are still processes in it, or parse.MalformedText.
        """
        self.cgroup(job_id).remove()
        self.release_protection()

    def release_protection(self) -> None:
        """Take back the protection of memory that jobs had which are gone.

        To be called when a job has ended: what it had protected would go to jobs that asked for
        none. Raises OSError or parse.MalformedText.
        """
        with self._claiming:
            protection.release(str(self.directory), self._files)

    def place_in_cgroup(self, cgroup: Cgroup, pid: int) -> None:
        """Move a process into a cgroup. Raises OSError (ESRCH if there is no such process).

        The move takes a lock of the whole system; a process that is born in its cgroup
        (`Cgroup.open`, CLONE_INTO_CGROUP) needs none.
        """
        cgroup.place(pid)

    def cleanup(self) -> None:
        """Remove the jobs' directory if no cgroup is left in it, and unmount what setup mounted.

        While a cgroup is there (of this server or another one) everything stays as it is.
        """
        try:
            self._files.remove_cgroup(str(self.directory))
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return
            raise
        self._root.release()

    def controllers(self) -> dict[str, Controller]:
        """Return the state of every controller that limits need, by name; changes nothing.

        Before `setup`, it is the state that setup would bring about if the kernel refuses no more
        than can be foreseen.
        """
        mounts = self._mounts.table()
        subsystems = self._mounts.subsystems()
        offered = self._offered(mounts, subsystems)
        is_set_up = self._files.exists(f"{self.directory}/cgroup.subtree_control")
        refusals = self._refusals if is_set_up else self._foreseen_refusals(offered)
        tree = Hierarchy(
            root=str(self.root),
            enabled=self._enabled() if is_set_up else offered - refusals.keys(),
            offered=offered,
            refusals=refusals,
            # The root of a hierarchy is the only cgroup that has no type.
            partial=self._files.exists(f"{self.root}/cgroup.type"),
        )
        return {name: diagnose(name, tree, mounts, subsystems) for name in CONTROLLERS}

    def _check_writable(self) -> None:
        """Raise CgroupUnavailable if no job's cgroup could be created in the jobs' directory."""
        try:
            self._files.check_writable(str(self.directory))
        except OSError as error:
            raise _not_created(f"cgroups in {self.directory}", error) from error

    def _foreseen_refusals(self, offered: Iterable[str]) -> dict[str, str]:
        """Return what the kernel will say to controllers that the root does not pass on yet."""
        if not (members := self._root.others()):
            return {}
        missing = set(offered) - self._names(f"{self.root}/cgroup.subtree_control")
        return {
            name: _refusal(str(self.root), name, OSError(errno.EBUSY, ""), members)
            for name in missing
        }

    def _enable_controllers(self, path: str) -> None:
        """Enable for the cgroups below `path` what limits need, one write for each controller.

        One write for all would lose all when the kernel refuses one.
        """
        offered = self._names(f"{path}/cgroup.controllers")
        enabled = self._names(f"{path}/cgroup.subtree_control")
        for name in CONTROLLERS:
            if name not in offered or name in enabled:
                continue
            try:
                self._files.write(f"{path}/cgroup.subtree_control", f"+{name}")
            except OSError as error:
                self._refusals[name] = self._why_refused(path, name, error)

    def _why_refused(self, path: str, name: str, error: OSError) -> str:
        members = []
        if error.errno == errno.EBUSY:
            members = self._files.read(f"{path}/cgroup.procs").split()
        return _refusal(path, name, error, members)

    def _enabled(self) -> frozenset[str]:
        return self._names(f"{self.directory}/cgroup.subtree_control")

    def _offered(
        self, mounts: Iterable[Mount], subsystems: Mapping[str, Subsystem]
    ) -> frozenset[str]:
        """Return what the root has, or would have if cgroup2 were mounted there."""
        if self._mounts.is_cgroup2(str(self.root)):
            return self._names(f"{self.root}/cgroup.controllers")
        for mount in mounts:
            # All mounts show the same hierarchy.
            if mount.kind == "cgroup2":
                return self._names(f"{mount.point}/cgroup.controllers")
        return unbound(subsystems)

    def _names(self, path: str) -> frozenset[str]:
        try:
            return parse.words(self._files.read(path))
        except OSError as error:
            if error.errno not in (*GONE, errno.ENOTDIR):
                raise
            return frozenset()

    def _are_enabled(self, wanted: Iterable[Setting]) -> bool:
        return {setting.controller for setting in wanted} <= self._enabled()

    def _require_controllers(self, job_id: str, wanted: Iterable[Setting]) -> None:
        enabled = self._enabled()
        for setting in wanted:
            if setting.controller not in enabled:
                reason = self.controllers()[setting.controller].reason
                raise ControllerUnavailable(
                    f"cannot apply {setting.file} to job {job_id}: {reason}"
                )

    def _make(self, cgroup: Cgroup) -> None:
        try:
            try:
                self._files.make_cgroup(cgroup.path)
            except FileNotFoundError:
                # Never set up, or taken away by another server's cleanup.
                self.setup()
                self._files.make_cgroup(cgroup.path)
        except FileExistsError as error:
            raise CgroupUnavailable(f"the cgroup {cgroup.path} is there already") from error
        except OSError as error:
            what = f"create the cgroup {cgroup.path}"
            raise exhausted(what, error.errno, meanings=_NO_MORE_CGROUPS) or CgroupUnavailable(
                f"cannot {what}: {problem(error)}"
            ) from error

    def _applier(self, cgroup: Cgroup) -> Applier:
        return Applier(cgroup, self._files, self._page_size)

    def _require_domain(self, cgroup: Cgroup) -> None:
        """Raise CgroupUnavailable if no process could be in a new cgroup.

        A job that runs as root can leave its cgroup and make it threaded. Unless the jobs'
        directory has controllers of domains enabled (memory, io), that makes the directory the root
        of a threaded domain, and all cgroups in it invalid that are not threaded (cgroup-v2.rst,
        "Threads").
        """
        if self._type(cgroup.path) != "domain invalid":
            return
        what = f"cannot use the cgroup {cgroup.path}: "
        names = self._files.children(str(self.directory))
        threaded = [name for name in names if self._type(f"{self.directory}/{name}") == "threaded"]
        if threaded:
            raise CgroupUnavailable(
                f"{what}{' and '.join(threaded[:3])} beside it has been made threaded "
                "(cgroup.type), which makes every new one unusable; stop that job"
            )
        raise CgroupUnavailable(f"{what}{self.directory} is, or is in, a threaded cgroup")

    def _claim_protection(self, job_id: str, limits: Limits) -> None:
        if limits.memory_min is None and limits.memory_low is None:
            return
        try:
            with self._claiming:
                protection.claim(str(self.directory), self._files)
        except (OSError, parse.MalformedText) as error:
            raise LimitNotApplied(
                f"cannot protect memory of job {job_id}: {self.directory} could not be given as "
                f"much protection as its jobs have: {error}"
            ) from error

    def _type(self, path: str) -> str:
        try:
            return self._files.read(f"{path}/cgroup.type").strip()
        except OSError as error:
            if error.errno not in GONE:
                raise
            return ""

    def _bound(self, cgroup: Cgroup) -> None:
        for file, text in _BOUNDS.items():
            try:
                self._files.write(f"{cgroup.path}/{file}", text)
            except OSError as error:
                if error.errno not in GONE:
                    raise CgroupUnavailable(f"cannot limit {cgroup.path}: {error}") from error


def _refusal(path: str, name: str, error: OSError, members: list[str]) -> str:
    """Say that the kernel refuses a controller for the cgroups below one with `members`."""
    reason = f"the kernel refused '+{name}' in {path}/cgroup.subtree_control: {problem(error)}"
    if members:
        # cgroup-v2.rst, "No Internal Process Constraint"
        reason += (
            f"; processes are in that cgroup itself ({', '.join(members[:10])}): "
            "move them into a cgroup of their own below it"
        )
    return reason


def _not_created(what: str, error: OSError) -> CgroupUnavailable:
    return CgroupUnavailable(
        f"cannot create {what}: {problem(error)}; run the server as root, "
        "or give it a cgroup root that belongs to its user (--cgroup-root)"
    )
