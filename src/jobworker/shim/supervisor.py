"""What the shim does for servers and for jobs: requests, live jobs, their ends, and when to leave.

Any number of servers may be connected. None of them matters to a job: all that has been asked for
goes on when a connection is lost.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from jobworker import steps
from jobworker.shim import wire
from jobworker.shim.caps import Caps
from jobworker.shim.channel import Channel
from jobworker.shim.live import LiveJob
from jobworker.shim.log import log
from jobworker.shim.record import write_exit_record
from jobworker.shim.retry import Retry
from jobworker.shim.spawn import SpawnFailure
from jobworker.shim.wire import ExitRecord, Launch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.shim.channel import Received
    from jobworker.shim.listener import Listener
    from jobworker.shim.loop import Loop
    from jobworker.shim.spawn import Spawner

_RETRY: Final = 1.0
"""Seconds until connections are accepted again."""
_MAX_PROBLEM: Final = 1000
"""How many characters of a problem an exit record takes."""
_CHECK: Final = 1.0
"""Seconds between two looks at the socket's name; less than a new shim waits for an old one."""
_CHECK_AFTER_FAILURE: Final = 60.0
FIRST_CONNECTION: Final = 10.0
"""Seconds that a new shim waits for the server that started it."""


class Refusal(Exception):
    """Raised by a request that cannot be granted; `kind` is one of wire.ERROR_KINDS."""

    def __init__(self, kind: str, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.errno = number


class _Connection:
    """A server: its channel, and whether it wants to hear of ends."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.greeted = False
        self.closing = False


class _Waiter(NamedTuple):
    """A request that is answered once the job's execve has succeeded or failed."""

    connection: _Connection
    request_id: object


class _Unwritten:
    """The end of a job whose exit.json could not be written yet.

    `job_dir` is None once that has been given up; `told` says whether any server has heard of it.
    Until then the job's main process is not reaped: if the shim is killed, the keeper notes its end
    elsewhere.
    """

    def __init__(self, record: ExitRecord, job: LiveJob) -> None:
        self.record = record
        self._job = job
        self.job_dir: int | None = job.job_dir
        self.retry = Retry()
        self.told = False

    def close(self) -> None:
        """Let go of the job and its directory."""
        self._job.close()
        if self.job_dir is not None:
            os.close(self.job_dir)
            self.job_dir = None


class Supervisor:
    """The shim's whole state. `run` returns when there is nothing left to do."""

    def __init__(self, loop: Loop, listener: Listener, spawner: Spawner, *, boot_id: str) -> None:
        self._loop = loop
        self._listener = listener
        self._spawner = spawner
        self._boot_id = boot_id
        self._caps = Caps(loop)
        self._connections: dict[int, _Connection] = {}
        self._jobs: dict[str, LiveJob] = {}
        self._waiters: dict[str, list[_Waiter]] = {}
        self._unwritten: dict[str, _Unwritten] = {}
        self._expected = True
        self._leaving = False
        self._operations: dict[str, Callable[[_Connection, Received], dict[str, Any] | None]] = {
            "hello": self._hello,
            "launch": self._launch,
            "attach": self._attach,
            "stop": self._stop,
        }

    def run(self) -> None:
        """Serve until there is neither a job, nor a record to write, nor a connection."""
        self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        self._loop.call_at("socket", time.monotonic() + _CHECK, self._check_socket)
        self._loop.call_at("first", time.monotonic() + FIRST_CONNECTION, self._expect_nobody)
        while not (self._idle() and self._leave()):
            self._loop.run_once()

    def leave(self) -> None:
        """Leave as soon as there is no job and no record to write, connections or not."""
        self._leaving = True

    def _expect_nobody(self) -> None:
        self._expected = False

    def _idle(self) -> bool:
        if self._jobs or any(map(self._is_owed, self._unwritten.values())):
            return False
        return self._leaving or not (self._connections or self._expected)

    def _is_owed(self, end: _Unwritten) -> bool:
        """Whether an end would be lost, or could still be written, if the shim left."""
        return end.job_dir is not None or not (end.told or self._leaving)

    def _leave(self) -> bool:
        """Take the socket away; but stay, with a new one, if somebody has connected meanwhile."""
        self._loop.unwatch(self._listener.fileno())
        late = self._listener.retire()
        steps.reached("shim.leave.retired")
        if late is not None and not self._leaving:
            self._listener.open()
            self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
            self._greet(late)
            return False
        if late is not None:
            late.close()
        for connection in list(self._connections.values()):
            self._drop(connection)
        return True

    # Connections

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()
        except OSError as error:
            # Out of descriptors: the listening socket stays readable, so look away for a while.
            log(f"cannot accept a connection: {error}")
            self._loop.unwatch(self._listener.fileno())
            self._loop.call_at("accept", time.monotonic() + _RETRY, self._accept_again)
            return
        if sock is not None:
            self._greet(sock)

    def _accept_again(self) -> None:
        self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def _check_socket(self) -> None:
        """Listen again if somebody has removed the socket: no server could reach the jobs."""
        pause = _CHECK
        if self._listener.is_unreachable():
            self._loop.unwatch(self._listener.fileno())
            self._loop.cancel("accept")
            try:
                self._listener.reopen()
            except OSError as error:
                log(f"{wire.SOCKET_NAME} was removed, and I cannot listen again: {error}")
                pause = _CHECK_AFTER_FAILURE
            else:
                log(f"{wire.SOCKET_NAME} was removed; listening again")
                self._accept_again()
        self._loop.call_at("socket", time.monotonic() + pause, self._check_socket)

    def _greet(self, sock: socket.socket) -> None:
        uid = _peer_uid(sock)
        if uid not in (0, os.geteuid()):
            log(f"refused a connection of user {uid}")
            sock.close()
            return
        connection = _Connection(Channel(sock))
        self._connections[connection.channel.fileno()] = connection
        self._loop.watch(
            connection.channel.fileno(), select.EPOLLIN, lambda: self._serve(connection)
        )

    def _drop(self, connection: _Connection) -> None:
        fd = connection.channel.fileno()
        if self._connections.pop(fd, None) is not None:
            self._loop.unwatch(fd)
            connection.channel.close()

    def _serve(self, connection: _Connection) -> None:
        """Read requests and answer them, and send what has been waiting."""
        try:
            connection.channel.flush()
            if not connection.closing:
                connection.channel.read()
                self._answer_all(connection)
        except (EOFError, OSError) as error:
            if not isinstance(error, EOFError):
                log(f"lost a connection: {error}")
            self._drop(connection)
            return
        self._after_sending(connection)

    def _answer_all(self, connection: _Connection) -> None:
        while not connection.closing:
            try:
                received = connection.channel.next()
            except ValueError as error:
                log(f"closing a connection that does not speak the protocol: {error}")
                connection.closing = True
                connection.channel.send(_error(None, Refusal("bad_request", str(error))))
                return
            if received is None:
                return
            try:
                self._answer(connection, received)
            finally:
                for fd in received.fds:
                    os.close(fd)

    def _answer(self, connection: _Connection, received: Received) -> None:
        """Carry out one request. What is left in `received.fds` is closed afterwards."""
        request_id = received.message.get("id")
        operation = self._operations.get(str(received.message.get("op")), _no_operation)
        try:
            result = operation(connection, received)
        except Refusal as refusal:
            connection.channel.send(_error(request_id, refusal))
        except ValueError as error:
            connection.channel.send(_error(request_id, Refusal("bad_request", str(error))))
        else:
            if result is not None:
                connection.channel.send({"id": request_id, "ok": result})

    def _send(self, connection: _Connection, message: dict[str, Any], *fds: int) -> None:
        """Send what is not the answer to the request at hand, to a server that may be gone."""
        if connection.channel.fileno() not in self._connections:
            return
        try:
            connection.channel.send(message, fds)
        except OSError as error:
            log(f"lost a connection: {error}")
            self._drop(connection)
            return
        self._after_sending(connection)

    def _after_sending(self, connection: _Connection) -> None:
        if connection.closing and not connection.channel.pending:
            self._drop(connection)
            return
        reading = 0 if connection.closing else select.EPOLLIN
        writing = select.EPOLLOUT if connection.channel.pending else 0
        self._loop.modify(connection.channel.fileno(), reading | writing)

    # Requests

    def _hello(self, connection: _Connection, received: Received) -> dict[str, Any]:
        del received
        connection.greeted = True
        self._expected = False
        for end in self._unwritten.values():
            end.told = True
        return {
            "version": wire.VERSION,
            "pid": os.getpid(),
            "jobs": list(self._jobs),
            "ended": [each.record.to_json() for each in self._unwritten.values()],
        }

    def _launch(self, connection: _Connection, received: Received) -> None:
        launch = Launch.from_json(received.message.get("args"))
        steps.reached("shim.launch.received")
        if launch.job_id in self._jobs or launch.job_id in self._unwritten:
            raise Refusal("bad_request", "there is a job of that id")
        stdin, output, cgroup, job_dir, *split = _launch_fds(launch, received)
        stderr = split[0] if split else None
        try:
            spawned = self._spawner.spawn(
                launch, stdin=stdin, output=output, stderr=stderr, cgroup=cgroup
            )
        except SpawnFailure as failure:
            raise Refusal(failure.kind, os.strerror(failure.errno), failure.errno) from failure
        steps.reached("shim.launch.cloned")
        received.fds[:] = [stdin, cgroup]
        self._waiters[launch.job_id] = [_Waiter(connection, received.message.get("id"))]
        job = self._jobs[launch.job_id] = LiveJob(
            launch,
            spawned,
            outputs=(output, *split),
            job_dir=job_dir,
            loop=self._loop,
            on_executed=self._on_executed,
            on_ended=self._on_ended,
        )
        self._caps.add(job.id, job.outputs, launch.output_max_bytes)

    def _attach(self, connection: _Connection, received: Received) -> None:
        job = self._job(received)
        waiter = _Waiter(connection, received.message.get("id"))
        if job.id in self._waiters:
            self._waiters[job.id].append(waiter)
        else:
            self._tell_process(waiter, job)

    def _stop(self, connection: _Connection, received: Received) -> dict[str, Any]:
        del connection
        job = self._job(received)
        args = received.message["args"]
        steps.reached("shim.stop.received")
        job.stop(wire.check_signal(args.get("signal")), wire.check_seconds(args.get("grace")))
        steps.reached("shim.stop.signalled")
        return {}

    def _job(self, received: Received) -> LiveJob:
        args = received.message.get("args")
        if not isinstance(args, dict) or not isinstance(args.get("job_id"), str):
            raise Refusal("bad_request", "args must have a job_id")
        try:
            return self._jobs[args["job_id"]]
        except KeyError:
            raise Refusal("unknown_job", "no live job has that id") from None

    # Jobs

    def _on_executed(self, job: LiveJob) -> None:
        steps.reached("shim.launch.executed")
        for waiter in self._waiters.pop(job.id):
            self._tell_process(waiter, job)
        steps.reached("shim.launch.answered")

    def _tell_process(self, waiter: _Waiter, job: LiveJob) -> None:
        reply = {
            "pid": job.pid,
            "start_time": job.start_time,
            "started_at": job.started_at,
            "stopped": job.stopped,
        }
        self._send(waiter.connection, {"id": waiter.request_id, "ok": reply}, job.pidfd)

    def _on_ended(self, job: LiveJob) -> None:
        self._caps.finish(job.id)
        if job.failure is not None:
            self._fail(job, job.failure)
            return
        record = job.record(self._boot_id)
        steps.reached("shim.end.usage_read")
        # Only now: what fails before this is tried again, and the job must be known then.
        del self._jobs[job.id]
        end = _Unwritten(record, job)
        written = self._write(end)
        steps.reached("shim.end.record_written")
        problem = self._remove_cgroup(job)
        steps.reached("shim.end.cgroup_removed")
        if problem:
            end.record = record._replace(cgroup_error=problem)
            written = written and self._write(end)
        if not written:
            self._unwritten[job.id] = end
        else:
            end.close()
        event = {"event": "ended", "record": end.record.to_json()}
        for connection in list(self._connections.values()):
            if connection.greeted:
                end.told = True
                self._send(connection, event)
        steps.reached("shim.end.told")

    def _fail(self, job: LiveJob, failure: SpawnFailure) -> None:
        steps.reached("shim.failed.known")
        del self._jobs[job.id]
        job.close()
        os.close(job.job_dir)
        refusal = Refusal(failure.kind, os.strerror(failure.errno), failure.errno)
        for waiter in self._waiters.pop(job.id):
            self._send(waiter.connection, _error(waiter.request_id, refusal))

    def _remove_cgroup(self, job: LiveJob) -> str:
        """Remove the cgroup; return why it is still there, if that fails."""
        try:
            job.cgroup.remove()
        except (OSError, ValueError) as error:
            problem = "; ".join(filter(None, (job.trouble, str(error))))
            log(f"job {job.id}: cannot remove its cgroup: {problem}")
            return _as_text(problem)[:_MAX_PROBLEM]
        return ""

    def _write(self, end: _Unwritten) -> bool:
        """Write a record down; return False if that has to be tried again, or is given up.

        A server removes the directory of a job that it has given up; then nobody would read it.
        """
        if end.job_dir is None:
            return False
        try:
            write_exit_record(end.job_dir, end.record)
        except OSError as error:
            what = f"job {end.record.job_id}: cannot write {wire.EXIT_RECORD_NAME}"
            if _is_removed(end.job_dir):
                log(f"{what}: its directory was removed")
                return True
            self._write_later(end, error, what)
            return False
        return True

    def _write_later(self, end: _Unwritten, error: OSError, what: str) -> None:
        pause = end.retry.after(error)
        if pause is None:
            log(f"{what}, giving up: {error}; its end is known to those alone who connect to me")
            end.close()
            return
        if end.retry.failures == 1:
            log(f"{what}, trying again: {error}")
        key = ("record", end.record.job_id)
        self._loop.call_at(key, time.monotonic() + pause, lambda: self._write_again(end))

    def _write_again(self, end: _Unwritten) -> None:
        if self._write(end):
            end.close()
            del self._unwritten[end.record.job_id]


def _error(request_id: object, refusal: Refusal) -> dict[str, Any]:
    error = {"kind": refusal.kind, "errno": refusal.errno, "message": str(refusal)}
    return {"id": request_id, "error": error}


def _no_operation(connection: _Connection, received: Received) -> NoReturn:
    del connection
    raise Refusal("bad_request", f"there is no operation {received.message.get('op')!r:.40}")


def _as_text(problem: str) -> str:
    """Return what can be written anywhere: a name on a Linux host need not be UTF-8 (PEP 383)."""
    return problem.encode("utf-8", "backslashreplace").decode()


def _is_removed(directory: int) -> bool:
    try:
        return os.fstat(directory).st_nlink == 0
    except OSError:  # ESTALE, where the directory is on another host
        return False


def _peer_uid(sock: socket.socket) -> int:
    """Return the user who connected (SO_PEERCRED, unix(7))."""
    size = struct.calcsize("3i")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _launch_fds(launch: Launch, received: Received) -> list[int]:
    """Return the descriptors of a launch, if they are what they should be.

    The cgroup's path must be that of the cgroup in which the process is born: what is killed by
    path in the end must be that, and no other.
    """
    needed = wire.LAUNCH_FDS + launch.split_stderr
    if len(received.fds) != needed:
        if received.message.get("fds") == needed:
            raise Refusal("setup", os.strerror(errno.EMFILE), errno.EMFILE)
        raise Refusal("bad_request", f"launch needs {needed} descriptors")
    _, _, cgroup, job_dir, *_ = received.fds
    if not stat.S_ISDIR(os.fstat(job_dir).st_mode):
        raise Refusal("bad_request", "the job's log directory must be a directory")
    try:
        same = os.path.samestat(os.stat(launch.cgroup_path), os.fstat(cgroup))  # noqa: PTH116 - no pathlib here
    except OSError as error:
        raise Refusal(
            "clone", f"{launch.cgroup_path}: {error.strerror}", error.errno or 0
        ) from error
    if not same:
        raise Refusal("bad_request", "cgroup_path is not the path of the cgroup's descriptor")
    return list(received.fds)
