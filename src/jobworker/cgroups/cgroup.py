"""One cgroup: who is in it, what it has used, how it is signalled, killed and removed.

The shim imports this module, so it stays small: no typing, dataclasses or pathlib at run time.
Kernel facts are from cgroup-v2.rst unless another source is named.
"""

from __future__ import annotations

import errno
import os
import select
import time

from jobworker.cgroups import parse
from jobworker.cgroups.files import GONE, Files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobworker.cgroups.limits import Limits

SIGNAL_PASSES = 8
"""How often `Cgroup.signal` looks for processes born meanwhile; a fork bomb never runs dry."""
SIGNAL_BATCH = 64
"""How many pidfds `Cgroup.signal` holds at a time."""
KILL_PATIENCE = 1.0
"""Seconds that `Cgroup.kill` spends at most where the kernel has no cgroup.kill."""

_SIGKILL = 9


class Cgroup:
    """A cgroup by its path. Making the object touches nothing.

    A cgroup that does not exist (any more) counts as empty: it has no processes, and killing,
    signalling or removing it does nothing.

    Everything that reads a file raises OSError if it cannot be read, and parse.MalformedText (a
    ValueError) if it does not hold what the kernel document promises.
    """

    __slots__ = ("_files", "path")

    def __init__(self, path: str | os.PathLike[str], files: Files | None = None) -> None:
        self.path: str = os.fspath(path)
        self._files = files or Files()

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cgroup) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def id(self) -> str:
        """The last part of the path: for a job's cgroup, the job's id."""
        return self.path.rpartition("/")[2]

    def open(self) -> int:
        """Return a descriptor of the directory, fit for CLONE_INTO_CGROUP (clone(2), Linux 5.7).

        The caller owns it. Raises FileNotFoundError if there is no such cgroup.
        """
        return self._files.open_directory(self.path)

    def open_events(self) -> int:
        """Return a descriptor of cgroup.events, to be polled for EPOLLPRI; the caller owns it.

        Read it with `events(fd)` before the first poll and after every wake-up.
        """
        return self._files.open(self._file("cgroup.events"))

    def events(self, fd: int | None = None) -> dict[str, int]:
        """Read cgroup.events: "populated", and "frozen" (Linux 5.2).

        With `fd` from `open_events` the read also arms the next poll. Raises OSError or
        MalformedText.
        """
        try:
            if fd is None:
                text = self._files.read(self._file("cgroup.events"))
            else:
                text = self._files.read_again(fd)
        except OSError as error:
            if error.errno in GONE:
                return {"populated": 0}
            raise
        return parse.flat_keyed(text, self._file("cgroup.events"))

    def populated(self, fd: int | None = None) -> bool:
        """Tell whether a live process is in the cgroup or in one nested in it.

        Raises OSError or MalformedText.
        """
        return self.events(fd).get("populated") == 1

    def place(self, pid: int) -> None:
        """Move a process into the cgroup. Raises OSError (ESRCH if there is no such process)."""
        self._files.write(self._file("cgroup.procs"), str(pid))

    def processes(self) -> list[int]:
        """Return the pids of all processes in the cgroup and in those nested in it, in order.

        A process that moves from one nested cgroup to another at this moment may be missed. Those
        outside our pid namespace are left out (the kernel lists them as 0). Raises OSError or
        MalformedText.
        """
        pids: set[int] = set()
        for path in self._tree():
            source = f"{path}/cgroup.procs"
            try:
                pids.update(parse.values(self._files.read(source), source))
            except OSError as error:
                # A threaded cgroup refuses: its processes are listed by its threaded domain.
                if error.errno not in (*GONE, errno.EOPNOTSUPP):
                    raise
        return sorted(pids - {0})

    def signal(self, signum: int) -> int:
        """Send a signal to every process of the cgroup, nested cgroups included.

        No process outside ever gets it, even if pids are reused meanwhile. Processes born during
        the call get it too, unless they are born faster than they can be found. Returns how many
        processes were addressed. Raises OSError (EPERM, EMFILE) or MalformedText.
        """
        addressed: set[int] = set()
        for _ in range(SIGNAL_PASSES):
            fresh = [pid for pid in self.processes() if pid not in addressed]
            if not fresh:
                break
            for start in range(0, len(fresh), SIGNAL_BATCH):
                self._signal_members(fresh[start : start + SIGNAL_BATCH], signum)
            addressed.update(fresh)
        return len(addressed)

    def kill(self) -> None:
        """Send SIGKILL to all processes, nested cgroups included, and to those being born.

        Returns when the signals are sent, not when the processes are gone: wait for
        ``populated 0``. Uses cgroup.kill (Linux 5.14); before it, freezes the cgroup (Linux 5.2)
        and kills its members one by one until none is left or KILL_PATIENCE is over. Raises OSError
        or, before Linux 5.14, MalformedText.
        """
        try:
            self._files.write(self._file("cgroup.kill"), "1")
        except OSError as error:
            if error.errno not in GONE:
                raise
            if self._files.exists(self._file("cgroup.events")):
                self._kill_members()

    def usage(self) -> dict[str, int]:
        """Return what the cgroup has used, with the keys of the wire contract's Usage.

        Times are microseconds, sizes bytes. What the kernel does not report is absent. Raises
        OSError or MalformedText.
        """
        result: dict[str, int] = {}
        for file, keys, read in _USAGE:
            source = self._file(file)
            text = self._read_if_there(source)
            if text is None:
                continue
            found = read(text, source)
            result.update({key: found[name] for name, key in keys.items() if name in found})
        return result

    def limits(self) -> Limits:
        """Return the limits in force: None where the kernel's default is, or has no such file.

        Raises OSError or MalformedText.
        """
        from jobworker.cgroups.limits import read_back  # noqa: PLC0415 - not for the shim

        return read_back(lambda file: self._read_if_there(self._file(file)))

    def remove(self) -> None:
        """Remove the cgroup and those nested in it (a job that runs as root can make them).

        Raises OSError, with EBUSY and the processes if there are any left, or MalformedText.
        """
        for path in reversed(self._tree()):
            try:
                self._files.remove_cgroup(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                members = ", ".join(map(str, self.processes())) or "unknown"
                problem = f"cannot remove the cgroup: it still has processes ({members})"
                raise OSError(errno.EBUSY, problem, path) from error

    def _file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _tree(self) -> list[str]:
        """Return the paths of this cgroup and all nested in it, each before those below it."""
        paths = [self.path]
        for path in paths:
            try:
                names = self._files.children(path)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                continue
            paths.extend(f"{path}/{name}" for name in names)
        return paths

    def _read_if_there(self, source: str) -> str | None:
        try:
            return self._files.read(source)
        except OSError as error:
            # EOPNOTSUPP: pressure files of a kernel that was booted with psi=0.
            if error.errno not in (*GONE, errno.EOPNOTSUPP):
                raise
            return None

    def _signal_members(self, pids: list[int], signum: int) -> None:
        """Signal those of `pids` that are members, and only those.

        A pid may have changed hands between cgroup.procs and pidfd_open. So membership is read
        again while the pidfds are held: a pid that is listed now belongs to a live process, and
        that is the one the pidfd means, or the pidfd's process is dead and the signal fails.
        """
        from signal import pidfd_send_signal  # noqa: PLC0415 - costs the shim 0.8 MB, if needed

        pidfds: dict[int, int] = {}
        try:
            for pid in pids:
                try:
                    pidfds[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
            members = set(self.processes())
            for pid in pidfds.keys() & members:
                try:
                    pidfd_send_signal(pidfds[pid], signum)
                except ProcessLookupError:
                    continue
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    def _kill_members(self) -> None:
        """Do what cgroup.kill does, on kernels before 5.14.

        One pass is not enough: a fork that was under way when its parent was killed may add one
        more process, and the freezer would keep that one for ever.
        """
        deadline = time.monotonic() + KILL_PATIENCE
        try:
            events = self.open_events()
        except FileNotFoundError:
            return
        try:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            self._freeze()
            while self.populated(events):
                self._signal_members(self.processes(), _SIGKILL)
                if time.monotonic() >= deadline:
                    break
                poller.poll(10)
        finally:
            os.close(events)

    def _freeze(self) -> None:
        try:
            self._files.write(self._file("cgroup.freeze"), "1")
        except OSError as error:
            if error.errno not in GONE:
                raise


def _peak(text: str, source: str) -> dict[str, int]:
    return {"": parse.value(text, source)}


def _some(text: str, source: str) -> dict[str, int]:
    total = parse.stall_total(text, source)
    return {} if total is None else {"": total}


_USAGE = (
    # Every cgroup has cpu.stat, even without the controller (Linux 4.15).
    (
        "cpu.stat",
        {"user_usec": "cpu_user_us", "system_usec": "cpu_system_us"},
        parse.flat_keyed,
    ),
    ("memory.peak", {"": "memory_peak"}, _peak),  # Linux 5.19
    (
        "io.stat",
        {
            "rbytes": "io_read_bytes",
            "wbytes": "io_write_bytes",
            "rios": "io_read_operations",
            "wios": "io_write_operations",
        },
        parse.io_totals,
    ),
    ("memory.events", {"oom_kill": "oom_kills"}, parse.flat_keyed),  # oom_kill: Linux 4.13
    ("pids.peak", {"": "pids_peak"}, _peak),  # Linux 6.1
    ("cpu.pressure", {"": "cpu_pressure_us"}, _some),  # Linux 4.20, with CONFIG_PSI
    ("memory.pressure", {"": "memory_pressure_us"}, _some),
    ("io.pressure", {"": "io_pressure_us"}, _some),
)
