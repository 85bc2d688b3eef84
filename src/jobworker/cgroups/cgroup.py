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
    from collections.abc import Callable, Iterable

    from jobworker.cgroups.files import Nested
    from jobworker.cgroups.limits import Limits

    _Figures = tuple[str, dict[str, str], Callable[[str, str], dict[str, int]]]
    """A file, which of its keys is called what, and how it is read."""

SIGNAL_PASSES = 8
"""How often `Cgroup.signal` looks for processes born meanwhile; a fork bomb never runs dry."""
SIGNAL_BATCH = 256
"""How many pidfds `Cgroup.signal` holds at a time."""
KILL_PATIENCE = 1.0
"""Seconds that `Cgroup.kill` spends at most where the kernel has no cgroup.kill."""

_SIGKILL = 9
_SHOWN = 10


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
        for nested in self._files.walk(self.path):
            pids |= _members(nested)
        return sorted(pids)

    def signal(self, *signums: int, main: int | None = None) -> int:
        """Send signals to every process of the cgroup, nested cgroups included.

        `main` is a pidfd of the job's main process: that gets them too, and once, wherever it has
        gone (a process of root can leave its cgroup). No other process outside ever gets them, even
        if pids are reused meanwhile. Processes born during the call get them too, unless they are
        born faster than they can be found. Returns how many processes were addressed, without a
        main process that was reaped. Raises OSError (EPERM, EMFILE) or MalformedText.
        """
        addressed: set[int] = set()
        if main is not None:
            pid = _pid_of(main)
            if pid > 0:
                addressed.add(pid)
            _send(main, signums)
        for _ in range(SIGNAL_PASSES):
            if not self._signal_members(signums, addressed):
                break
        return len(addressed)

    def ask_to_end(self, signum: int, main: int | None = None) -> None:
        """Send a signal as `signal` does, and let what is stopped or frozen hear it.

        A stopped process hears it only when it goes on, so SIGCONT follows (as systemd.kill(5)
        does), unless the signal is that one or one that stops. A frozen cgroup is thawed after the
        signals, so that nothing of it runs before it has them, and even if they could not be sent.
        Raises the first OSError or MalformedText, after all was tried.
        """
        try:
            self.signal(*_with_continue(signum), main=main)
        except (OSError, parse.MalformedText) as error:
            try:
                self.thaw()
            except OSError as another:
                error.add_note(f"nor could it be thawed: {another}")
            raise
        self.thaw()

    def kill(self, main: int | None = None) -> None:
        """Send SIGKILL to all processes, nested cgroups included, and to those being born.

        `main` is a pidfd of the job's main process, which is killed wherever it has gone. Returns
        when the signals are sent, not when the processes are gone: wait for ``populated 0``.
        Uses cgroup.kill (Linux 5.14). Before it, and in a threaded cgroup, which has no such file
        that works, freezes the cgroup (Linux 5.2) and kills its members one by one until none is
        left or KILL_PATIENCE is over. Raises OSError or, where it goes one by one, MalformedText.
        """
        try:
            self._kill_all()
        finally:
            if main is not None:
                _send(main, (_SIGKILL,))

    def freezing(self) -> bool:
        """Tell whether the kernel was asked to freeze the cgroup, be it done or not.

        False if it is gone, or before Linux 5.2. Raises OSError or MalformedText.
        """
        return self._read_if_there(self._file("cgroup.freeze")) == "1\n"

    def freeze(self, frozen: bool) -> None:
        """Ask the kernel to freeze the cgroup and all nested in it, or to let it go on (Linux 5.2).

        Done is what ``frozen`` of `events` says. Frozen processes can still be killed. A cgroup
        that is nested in it and was frozen by itself stays frozen. Raises OSError.
        """
        self._files.write(self._file("cgroup.freeze"), "1" if frozen else "0")

    def thaw(self) -> None:
        """Let everything in the cgroup go on, whoever has frozen it or a cgroup nested in it.

        Raises OSError.
        """
        for nested in self._files.walk(self.path):
            try:
                nested.write("cgroup.freeze", "0")
            except OSError as error:
                if error.errno not in GONE:
                    raise

    def usage(self) -> dict[str, int]:
        """Return what the cgroup has used, with the keys of the wire contract's Usage.

        Times are microseconds, sizes bytes. What the kernel does not report is absent. Raises
        OSError or MalformedText.
        """
        return self._read_figures(_USAGE)

    def current(self) -> dict[str, int]:
        """Return what the cgroup uses at this moment: memory_current, pids_current, ….

        The keys are the wire contract's, sizes are bytes. What the kernel does not report is
        absent. Raises OSError or MalformedText.
        """
        return self._read_figures(_CURRENT)

    def _read_figures(self, table: tuple[_Figures, ...]) -> dict[str, int]:
        result: dict[str, int] = {}
        for file, keys, read in table:
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

        Raises OSError, with EBUSY and what is in the way (processes, or a directory that something
        is mounted on), or MalformedText.
        """
        for nested in self._files.walk(self.path):
            try:
                nested.remove()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                problem = f"cannot remove the cgroup: {self._obstacle(nested)}"
                raise OSError(errno.EBUSY, problem, nested.path) from error

    def _file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _kill_all(self) -> None:
        try:
            self._files.write(self._file("cgroup.kill"), "1")
        except OSError as error:
            if error.errno not in (*GONE, errno.EOPNOTSUPP):
                raise
            if self._files.exists(self._file("cgroup.events")):
                self._kill_members()

    def _obstacle(self, nested: Nested) -> str:
        members = self.processes()
        if members:
            more = ", …" if len(members) > _SHOWN else ""
            return f"it still has processes ({', '.join(map(str, members[:_SHOWN]))}{more})"
        children = nested.children()
        if children:
            return f"it still holds others ({', '.join(map(repr, children[:_SHOWN]))})"
        return "something is using it"

    def _read_if_there(self, source: str) -> str | None:
        try:
            return self._files.read(source)
        except OSError as error:
            # EOPNOTSUPP: pressure files of a kernel that was booted with psi=0.
            if error.errno not in (*GONE, errno.EOPNOTSUPP):
                raise
            return None

    def _signal_members(self, signums: Iterable[int], addressed: set[int]) -> bool:
        """Signal the members that are not `addressed` yet, and add them; tell if there were any."""
        before = len(addressed)
        for nested in self._files.walk(self.path):
            fresh = sorted(_members(nested) - addressed)
            for start in range(0, len(fresh), SIGNAL_BATCH):
                _signal_batch(nested, fresh[start : start + SIGNAL_BATCH], signums)
            addressed.update(fresh)
        return len(addressed) > before

    def _kill_members(self) -> None:
        """Do what cgroup.kill does, where it cannot be used.

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
            self._freeze_if_possible()
            while self.populated(events):
                self._signal_members((_SIGKILL,), set())
                if time.monotonic() >= deadline:
                    break
                poller.poll(10)
        finally:
            os.close(events)

    def _freeze_if_possible(self) -> None:
        try:
            self.freeze(frozen=True)
        except OSError as error:
            if error.errno not in GONE:
                raise


def _members(nested: Nested) -> set[int]:
    """Return the pids of the processes of one cgroup, without those in the cgroups below it.

    Those outside our pid namespace are left out (the kernel lists them as 0). A threaded cgroup
    does not list its processes, which are their threaded domain's, but its threads.
    """
    try:
        return set(parse.values(nested.read("cgroup.procs"), "cgroup.procs")) - {0}
    except OSError as error:
        if error.errno in GONE:
            return set()
        if error.errno != errno.EOPNOTSUPP:
            raise
    try:
        threads = parse.values(nested.read("cgroup.threads"), "cgroup.threads")
    except OSError as error:
        if error.errno in GONE:
            return set()
        raise
    return {_process_of(thread) for thread in threads} - {0}


def _process_of(thread: int) -> int:
    """Return the pid of a thread's process, 0 if it is gone (Tgid in proc(5))."""
    return _number(f"/proc/{thread}/status", "Tgid:")


def _pid_of(pidfd: int) -> int:
    """Return the pid that a pidfd means (Pid in proc(5)).

    It is -1 if the process was reaped (Linux 5.5), 0 if that cannot be known.
    """
    return _number(f"/proc/self/fdinfo/{pidfd}", "Pid:")


def _number(file: str, key: str) -> int:
    try:
        with open(file) as lines:  # noqa: PTH123 - the shim has no pathlib
            for line in lines:
                if line.startswith(key):
                    return int(line[len(key) :])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _signal_batch(nested: Nested, pids: list[int], signums: Iterable[int]) -> None:
    """Signal those of `pids` that are members, and only those.

    A pid may have changed hands between cgroup.procs and pidfd_open. So membership is read
    again while the pidfds are held: a pid that is listed now belongs to a live process, and
    that is the one the pidfd means, or the pidfd's process is dead and the signal fails.
    """
    pidfds: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                pidfds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        for pid in pidfds.keys() & _members(nested):
            _send(pidfds[pid], signums)
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)


def _send(pidfd: int, signums: Iterable[int]) -> None:
    """Send signals to a process; one that has ended needs none."""
    from signal import pidfd_send_signal  # noqa: PLC0415 - costs the shim 0.8 MB, if needed

    try:
        for signum in signums:
            pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return


def _with_continue(signum: int) -> tuple[int, ...]:
    from signal import SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU  # noqa: PLC0415 - as in _send

    if signum in (SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU):
        return (signum,)
    return (signum, SIGCONT)


def _single(text: str, source: str) -> dict[str, int]:
    return {"": parse.value(text, source)}


def _some(text: str, source: str) -> dict[str, int]:
    total = parse.stall_total(text, source)
    return {} if total is None else {"": total}


_USAGE: tuple[_Figures, ...] = (
    # Every cgroup has cpu.stat, even without the controller (Linux 4.15).
    (
        "cpu.stat",
        {
            "user_usec": "cpu_user_us",
            "system_usec": "cpu_system_us",
            # With the controller; bursts since Linux 5.14.
            "nr_throttled": "cpu_throttled_periods",
            "throttled_usec": "cpu_throttled_us",
            "nr_bursts": "cpu_burst_periods",
            "burst_usec": "cpu_burst_us",
        },
        parse.flat_keyed,
    ),
    ("memory.peak", {"": "memory_peak"}, _single),  # Linux 5.19
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
    ("memory.swap.peak", {"": "memory_swap_peak"}, _single),  # Linux 6.5
    (
        "memory.events",
        {
            "high": "memory_high_events",
            "max": "memory_max_events",
            "oom_kill": "oom_kills",  # Linux 4.13
        },
        parse.flat_keyed,
    ),
    ("pids.peak", {"": "pids_peak"}, _single),  # Linux 6.1
    ("pids.events", {"max": "pids_max_events"}, parse.flat_keyed),  # Linux 4.8
    ("cpu.pressure", {"": "cpu_pressure_us"}, _some),  # Linux 4.20, with CONFIG_PSI
    ("memory.pressure", {"": "memory_pressure_us"}, _some),
    ("io.pressure", {"": "io_pressure_us"}, _some),
)

_CURRENT: tuple[_Figures, ...] = (
    ("memory.current", {"": "memory_current"}, _single),
    ("memory.swap.current", {"": "memory_swap_current"}, _single),
    ("pids.current", {"": "pids_current"}, _single),
)
