"""How a command becomes a process inside a cgroup: clone3(2), the child's last steps, execve(2).

The child of clone3 shares nothing with its parent but copies of memory and descriptors, as after
fork. It is made with the raw system call, through ctypes and with the interpreter's lock held,
because neither the C library nor Python offers CLONE_INTO_CGROUP (Linux 5.7). That is safe only in
a process with one thread, which the shim is; and the child does nothing but its last steps.

The child reports through a pipe whose end closes with a successful execve: until then, what went
wrong can be told; after that, the process is the command.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from jobworker.shim.log import log
from jobworker.shim.wire import encode_text
from jobworker.steps import reached  # `steps` are the child's here

if TYPE_CHECKING:
    from jobworker.shim.wire import Launch

_CLONE_PIDFD: Final = 0x00001000
_CLONE_INTO_CGROUP: Final = 0x200000000


class SystemCalls(NamedTuple):
    """The numbers of the system calls that are made directly."""

    clone3: int
    close_range: int
    rt_sigaction: int


SYSTEM_CALLS: Final = {
    "x86_64": SystemCalls(clone3=435, close_range=436, rt_sigaction=13),
    "aarch64": SystemCalls(clone3=435, close_range=436, rt_sigaction=134),
    "riscv64": SystemCalls(clone3=435, close_range=436, rt_sigaction=134),
}
"""By machine, as uname(2) names it (asm/unistd.h). On others this does without: fork in place of
clone3, no close_range, and signals 32 and 33 stay as they are."""

_SIGACTION_SIZE: Final = 32
_SIGSET_SIZE: Final = 8
"""Bytes, of the kernel's structures on 64-bit machines."""

_REFUSALS_OF_THE_KERNEL: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.E2BIG, errno.EPERM})
"""Before Linux 5.7 and under some seccomp filters. Everything else is about this one launch."""

_NANOSECONDS_PER_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MAX_STATUS: Final = 64
_UMASK: Final = 0o022
_FAILED: Final = 127

_libc = ctypes.PyDLL(None, use_errno=True)


def system_calls(machine: str, longest: int = sys.maxsize) -> SystemCalls | None:
    """Return the numbers of a machine for an interpreter whose `sys.maxsize` is `longest`.

    None if they are not known, as for a 32-bit interpreter on a 64-bit kernel.
    """
    return SYSTEM_CALLS.get(machine) if longest > 2**32 else None


_calls = system_calls(os.uname().machine)


class _CloneArgs(ctypes.Structure):
    """``struct clone_args`` of clone(2), in its third version (88 bytes)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class SpawnFailure(Exception):
    """Raised when no process could be made, or when it could not become the command.

    `kind` is one of wire.ERROR_KINDS, `errno` the kernel's reason.
    """

    def __init__(self, kind: str, number: int) -> None:
        super().__init__(f"{kind}: {os.strerror(number)}")
        self.kind = kind
        self.errno = number


class Spawned(NamedTuple):
    """A new child. The caller owns both descriptors, and reaps the child.

    `start_time` is field 22 of /proc/<pid>/stat (clock ticks since boot, proc(5)). `status` is the
    non-blocking pipe for `read_failure`.
    """

    pid: int
    pidfd: int
    start_time: int
    status: int


class _Steps(NamedTuple):
    """All that the child needs, made ready by its parent: what a child touches, it must copy."""

    stdin: int
    output: int
    stderr: int
    status: int
    executables: list[bytes]
    argv: list[bytes]
    env: dict[bytes, bytes]
    working_directory: bytes
    uid: int | None
    gid: int | None
    groups: list[int] | None


class Spawner:
    """Makes the children. It learns once whether the kernel offers clone3 into a cgroup.

    Signals that this process ignores or handles when the spawner is made are back to their
    defaults in every child; `nofile` is the soft and hard limit on descriptors that children get.
    """

    def __init__(self, nofile: tuple[int, int] | None = None) -> None:
        self._nofile = nofile or resource.getrlimit(resource.RLIMIT_NOFILE)
        self._signals = [
            each
            for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
            if signal.getsignal(each) is not signal.SIG_DFL
        ]
        self._clone3 = None if _calls is None else _calls.clone3
        if _calls is None:
            log("the numbers of this machine's system calls are not known; using fork")
        else:
            _restore_internal_signals(_calls.rt_sigaction)

    def spawn(
        self, launch: Launch, *, stdin: int, output: int, cgroup: int, stderr: int | None = None
    ) -> Spawned:
        """Make the process that becomes the command of `launch`, in the cgroup of that directory.

        Without `stderr`, standard error goes to `output` too. All descriptors stay the caller's.
        Raises SpawnFailure if there is no process.
        """
        borrowed = [stdin, output, output if stderr is None else stderr]
        try:
            status, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SpawnFailure("clone", error.errno or errno.EIO) from error
        borrowed.append(write_end)
        lifted: list[int] = []
        try:
            steps = self._prepare(launch, [_lift(fd, lifted) for fd in borrowed])
            earliest = _clock_ticks()
            pid, pidfd = self._clone(steps, cgroup)
            latest = _clock_ticks()
            try:
                start_time = latest if earliest == latest else _start_time(pid)
                return Spawned(pid, pidfd, start_time, status)
            except OSError:
                _destroy(pidfd)
                raise
        except OSError as error:
            os.close(status)
            raise SpawnFailure("clone", error.errno or errno.EIO) from error
        finally:
            for fd in (write_end, *lifted):
                os.close(fd)

    @staticmethod
    def _prepare(launch: Launch, fds: list[int]) -> _Steps:
        stdin, output, stderr, status = fds
        return _Steps(
            stdin=stdin,
            output=output,
            stderr=stderr,
            status=status,
            executables=[encode_text(each) for each in launch.executables],
            argv=[encode_text(each) for each in launch.argv],
            env={encode_text(name): encode_text(value) for name, value in launch.env.items()},
            working_directory=encode_text(launch.working_directory),
            uid=launch.uid,
            gid=launch.gid,
            groups=[] if launch.groups is None and launch.uid is not None else launch.groups,
        )

    def _clone(self, steps: _Steps, cgroup: int) -> tuple[int, int]:
        """Return pid and pidfd of a new child that is taking its last steps.

        The signals that this process handles or ignores are blocked until the child has put them
        back to their defaults: one that came before that would be lost.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        try:
            if self._clone3 is not None:
                try:
                    return self._clone_into(self._clone3, steps, cgroup)
                except OSError as error:
                    if error.errno not in _REFUSALS_OF_THE_KERNEL:
                        raise
                    log(f"no clone3 into a cgroup on this host ({error.strerror}); using fork")
                    self._clone3 = None
            return self._fork(steps, cgroup)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _clone_into(self, clone3: int, steps: _Steps, cgroup: int) -> tuple[int, int]:
        pidfd = ctypes.c_int(-1)
        arguments = _CloneArgs(
            flags=_CLONE_PIDFD | _CLONE_INTO_CGROUP,
            pidfd=ctypes.addressof(pidfd),
            exit_signal=signal.SIGCHLD,
            cgroup=cgroup,
        )
        size = ctypes.c_size_t(ctypes.sizeof(arguments))
        pid = _libc.syscall(clone3, ctypes.byref(arguments), size)
        if pid == 0:
            self._become_command(steps)
        if pid < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return pid, pidfd.value

    def _fork(self, steps: _Steps, cgroup: int) -> tuple[int, int]:
        pid = os.fork()
        if pid == 0:
            self._become_command(steps, enter=cgroup)
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # a child that nobody has reaped: no other has this pid
            os.waitpid(pid, 0)
            raise

    def _become_command(self, steps: _Steps, enter: int | None = None) -> NoReturn:
        """Take the last steps of the child; `enter` is the cgroup's directory if it is outside."""
        status = steps.status
        stage = "clone"
        number = errno.EIO
        try:
            if enter is not None:
                _enter(enter)
            stage = "setup"
            os.setsid()
            status = _put_in_place(steps)
            close_from(status + 1)
            for signum in self._signals:
                signal.signal(signum, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_NOFILE, self._nofile)
            os.umask(_UMASK)
            stage = "credentials"
            _take_on(steps)
            stage = "chdir"
            os.chdir(steps.working_directory)
            reached("child.launch.executing")
            stage = "exec"
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _execute(steps)
        except OSError as error:
            number = error.errno or number
        except MemoryError:
            number = errno.ENOMEM
        finally:
            try:
                os.write(status, f"{stage} {number}".encode())
            finally:
                os._exit(_FAILED)


def read_failure(status: int) -> SpawnFailure | None:
    """Return why a child could not become the command, or None if nothing was in its way.

    None also means a child that was killed before it could say anything (by the kernel for want of
    memory, or by a stop request): its wait status tells. Raises BlockingIOError if the child is
    still on its way.
    """
    report = os.read(status, _MAX_STATUS)
    if not report:
        return None
    kind, number = report.decode().split()
    return SpawnFailure(kind, int(number))


def _lift(fd: int, lifted: list[int]) -> int:
    """Return a descriptor that is none of 0, 1 and 2; one made for that is added to `lifted`."""
    if fd > 2:
        return fd
    lifted.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    return lifted[-1]


def _clock_ticks() -> int:
    """Return the time since boot in the unit of start times (proc(5)).

    The kernel notes a start time by this clock within clone (copy_process, since Linux 5.5), so if
    the tick is the same before and after, it is the start time. That spares a look into
    /proc/<pid>, which costs as much as a third of the clone.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // _NANOSECONDS_PER_TICK


def _start_time(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib in the shim
        return int(file.read().rpartition(b")")[2].split()[19])


def _destroy(pidfd: int) -> None:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)


def _restore_internal_signals(rt_sigaction: int) -> None:
    """Set signals 32 and 33 to their default in this process, and so in every child.

    glibc keeps them for itself (nptl(7)): signal(2) refuses them, and an ignored one is passed on
    by execve. GNU make, for one, starts its children with both ignored.
    """
    default = bytes(_SIGACTION_SIZE)  # SIG_DFL, no flags, an empty mask
    for signum in (32, 33):
        _libc.syscall(rt_sigaction, signum, default, None, _SIGSET_SIZE)


def _enter(cgroup: int) -> None:
    fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
    os.write(fd, b"0")
    os.close(fd)


def _put_in_place(steps: _Steps) -> int:
    """Give the descriptors the numbers 0, 1 and 2, and return the pipe's, which is 3."""
    os.dup2(steps.stdin, 0)
    os.dup2(steps.output, 1)
    os.dup2(steps.stderr, 2)
    status = 3
    if steps.status != status:
        os.dup2(steps.status, status, inheritable=False)
    return status


def close_from(first: int) -> None:
    """Close `first` and all above: close_range(2) since Linux 5.9, one by one without it.

    Not os.closerange: where Python was built without close_range, that tries every number.
    """
    everything = ctypes.c_uint(2**32 - 1)
    if _calls is not None and _libc.syscall(_calls.close_range, first, everything, 0) == 0:
        return
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 - no pathlib here
        if fd >= first:
            try:
                os.close(fd)
            except OSError:
                continue  # the descriptor by which the directory was listed


def _take_on(steps: _Steps) -> None:
    if steps.groups is not None:
        os.setgroups(steps.groups)
    if steps.gid is not None:
        os.setresgid(steps.gid, steps.gid, steps.gid)
    if steps.uid is not None:
        os.setresuid(steps.uid, steps.uid, steps.uid)


def _execute(steps: _Steps) -> NoReturn:
    """Execute the first candidate that can be, as execvp(3) does; but never through a shell.

    Raises OSError of the last one, or EACCES if that was the answer to any.
    """
    denied: OSError | None = None
    missing: OSError | None = None
    for path in steps.executables:
        try:
            os.execve(path, steps.argv, steps.env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = error
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            denied = error
    raise denied or missing or FileNotFoundError(errno.ENOENT, "no executable")
