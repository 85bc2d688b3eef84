"""The server's side of the shim: requests, their replies, and the news of jobs that have ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from jobworker import steps
from jobworker.errors import InvalidArgument, JobNotFound, ResourceExhausted, ShimUnavailable
from jobworker.shim import start, wire
from jobworker.shim.channel import Channel
from jobworker.shim.failures import job_error, launch_error
from jobworker.shim.proc import read_stat
from jobworker.shim.silence import explain_silence
from jobworker.shim.wire import ExitRecord, Launch

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from jobworker.shim.channel import Received
    from jobworker.shim.proc import Stat

_ATTEMPTS: Final = 5
"""How often a shim is started or reached; one can be leaving just as another server connects."""
_HELLO_PATIENCE: Final = 15.0
"""Seconds."""
_SIGKILL: Final = 9


class Launched(NamedTuple):
    """The main process of a job. The caller owns `pidfd` and closes it.

    `start_time` is field 22 of /proc/<pid>/stat: clock ticks since boot. `started_at` is when
    execve succeeded, in seconds since the epoch. `stopped` says whether the shim has been told to
    stop the job.
    """

    pid: int
    start_time: int
    started_at: float
    pidfd: int
    stopped: bool = False


class Client:
    """A connection to the shim. Belongs to the event loop in which it was made.

    Calls raise ShimUnavailable once the connection is lost; then make a new client. They wait as
    long as the shim takes: an execve may hang (a file system on a network), and so may the shim (a
    log directory on one). How long is too long is the caller's to say, by cancelling the call. That
    is safe at any time; what was asked for may still happen.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_ended: Callable[[ExitRecord], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        """Use `connect` instead."""
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(sock)
        self._on_ended = on_ended
        self._on_disconnect = on_disconnect
        self._calls: dict[int, asyncio.Future[Received]] = {}
        self._ids = itertools.count(1)
        self._greeted = False
        self._lost: str | None = None
        self._jobs: frozenset[str] = frozenset()
        self._shim: Stat | None = None
        self._loop.add_reader(self._channel.fileno(), self._on_readable)

    @classmethod
    async def connect(
        cls,
        run_dir: str | os.PathLike[str],
        on_ended: Callable[[ExitRecord], None],
        on_disconnect: Callable[[], None],
        *,
        version: int | None = None,
    ) -> Self:
        """Connect to the shim of `run_dir`, which must exist; start one if none listens.

        With a `version` other than our own (wire.VERSION), none is started.

        `on_ended(record)` is called once or more for every job that ends while this client is
        connected, and, before `connect` returns, for jobs that have ended but whose exit.json
        could not be written. `on_disconnect()` is called once if the connection is lost. Both run
        in the event loop. Raises ShimUnavailable.
        """
        directory = Path(run_dir)
        version = wire.VERSION if version is None else version
        for _ in range(_ATTEMPTS):
            sock = await asyncio.to_thread(start.connect, directory, version)
            if sock is None and version != wire.VERSION:
                break
            if sock is None:
                await asyncio.to_thread(start.start, directory)
                continue
            client = cls(sock, on_ended, on_disconnect)
            try:
                async with asyncio.timeout(_HELLO_PATIENCE):
                    hello = await client._call("hello", {"version": wire.VERSION})
            except ShimUnavailable:
                continue
            except BaseException as error:
                await client.close()
                if isinstance(error, TimeoutError):
                    why = await asyncio.to_thread(explain_silence, directory, version)
                    raise ShimUnavailable(why) from error
                raise
            client._greet(hello.message.get("ok") or {}, directory)
            return client
        if version != wire.VERSION:
            raise ShimUnavailable(f"no shim of version {version} listens in {directory}")
        raise ShimUnavailable(f"cannot reach the shim in {directory}: it leaves again and again")

    @property
    def jobs(self) -> frozenset[str]:
        """The ids of the jobs that were live when the connection was made."""
        return self._jobs

    @property
    def shim(self) -> Stat | None:
        """The shim's process, as it was when the connection was made."""
        return self._shim

    @property
    def lost(self) -> bool:
        """Whether the connection is lost or closed, so that every call would fail."""
        return self._lost is not None

    async def launch(
        self,
        launch: Launch,
        *,
        stdin: int,
        output: int,
        cgroup: int,
        job_dir: int,
        stderr: int | None = None,
    ) -> Launched:
        """Start a job; returns when execve has succeeded.

        The descriptors stay the caller's: the command's standard input, the file for its output,
        the directory of its cgroup, the job's log directory, and with `split_stderr` the file for
        its standard error. They must stay open during the call.
        After an error no process is left and the cgroup is empty. A call that is cancelled, or
        that loses the connection, may still start the job: `attach`, or the exit record, tells.

        Raises CommandNotFound, CommandNotExecutable, WorkingDirectoryUnusable, CgroupUnavailable,
        FailedPrecondition, InvalidArgument, ResourceExhausted or ShimUnavailable.
        """
        try:
            launch.check()
        except ValueError as error:
            raise InvalidArgument("command", str(error)) from error
        fds = (stdin, output, cgroup, job_dir, *(() if stderr is None else (stderr,)))
        received = await self._call("launch", launch.to_json(), fds)
        if "error" in received.message:
            raise launch_error(received.message["error"], launch)
        try:
            return _launched(received)
        except ResourceExhausted:
            with contextlib.suppress(JobNotFound):  # It has ended by itself.
                await self.stop(launch.job_id, signal=_SIGKILL, grace=0)
            raise

    async def attach(self, job_id: str) -> Launched:
        """Return the main process of a job that was launched earlier.

        Raises JobNotFound if the job has ended (`on_ended` has been called by then, or exit.json is
        there) or was never launched, LaunchFailed if the launch was still under way and has failed
        now (no process is left then, and the cgroup is empty, but still there), ResourceExhausted
        or ShimUnavailable.
        """
        received = await self._call("attach", {"job_id": job_id})
        if "error" in received.message:
            raise job_error(received.message["error"], job_id)
        return _launched(received)

    async def stop(self, job_id: str, *, signal: int = 15, grace: float = 10.0) -> None:
        """Have the shim stop a job; returns when it has accepted that, before the job has ended.

        Every process of the job gets `signal`; what is left after `grace` seconds is killed. A
        second call may bring the kill nearer, never put it off. Raises JobNotFound or
        ShimUnavailable.
        """
        args = {"job_id": job_id, "signal": int(signal), "grace": grace}
        received = await self._call("stop", args)
        if "error" in received.message:
            raise job_error(received.message["error"], job_id)

    async def close(self) -> None:
        """Close the connection; jobs go on. `on_disconnect` is not called."""
        self._disconnect("the connection to the shim has been closed")

    async def _call(
        self, operation: str, args: dict[str, Any], fds: Sequence[int] = ()
    ) -> Received:
        """Send a request and return its reply, whose descriptors belong to the caller."""
        if self._lost is not None:
            raise ShimUnavailable(self._lost)
        call_id = next(self._ids)
        reply = self._loop.create_future()
        self._calls[call_id] = reply
        try:
            self._channel.send({"id": call_id, "op": operation, "args": args}, fds)
            self._watch_writing()
            _say_sent(operation)
        except ValueError as error:
            del self._calls[call_id]
            raise InvalidArgument("command", str(error)) from error
        except OSError as error:
            self._lose(error)
        try:
            received: Received = await reply
        except asyncio.CancelledError:
            if reply.done() and not reply.cancelled() and reply.exception() is None:
                _close_all(reply.result().fds)
            raise
        return received

    def _greet(self, hello: dict[str, Any], directory: Path) -> None:
        if hello.get("version") not in wire.SPEAKS:
            self._disconnect("the shim is of another version")
            raise ShimUnavailable(
                f"the shim in {directory} (process {hello.get('pid')}) speaks version "
                f"{hello.get('version')} of the protocol, this server version {wire.VERSION}: send "
                "it SIGTERM, and it leaves when its last job has ended"
            )
        self._greeted = True
        self._jobs = frozenset(hello.get("jobs", ()))
        self._shim = read_stat(int(hello.get("pid", 0)))
        for record in hello.get("ended", ()):
            self._tell(self._on_ended, ExitRecord.from_json(record))

    def _on_readable(self) -> None:
        try:
            self._channel.read()
            while self._lost is None and (received := self._channel.next()) is not None:
                self._take(received)
        except (EOFError, OSError, ValueError) as error:
            self._lose(error)

    def _take(self, received: Received) -> None:
        message = received.message
        if message.get("event") == "ended":
            self._tell(self._on_ended, ExitRecord.from_json(message.get("record")))
        reply = self._calls.pop(message.get("id", 0), None)
        if reply is None or reply.done():
            _close_all(received.fds)
        else:
            reply.set_result(received)

    def _on_writable(self) -> None:
        try:
            self._channel.flush()
        except OSError as error:
            self._lose(error)
        else:
            self._watch_writing()

    def _watch_writing(self) -> None:
        if self._channel.pending:
            self._loop.add_writer(self._channel.fileno(), self._on_writable)
        else:
            self._loop.remove_writer(self._channel.fileno())

    def _lose(self, error: Exception) -> None:
        if self._lost is not None:
            return
        said = str(error) or "it has closed the connection"
        self._disconnect(f"the connection to the shim is lost: {said}")
        if self._greeted:
            self._tell(self._on_disconnect)

    def _disconnect(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = why
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        calls, self._calls = self._calls, {}
        for reply in calls.values():
            if not reply.done():
                reply.set_exception(ShimUnavailable(why))

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        """Call back; a mistake of the callback is reported, and the connection stays."""
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - the event loop's handler decides
            context = {"message": "a callback of the shim's client failed", "exception": error}
            self._loop.call_exception_handler(context)


def _say_sent(operation: str) -> None:
    if operation == "launch":
        steps.reached("server.start.sent")
    elif operation == "stop":
        steps.reached("server.stop.sent")


def _launched(received: Received) -> Launched:
    """Read the reply to launch or attach. Raises ResourceExhausted or ShimUnavailable."""
    if not received.fds:
        problem = os.strerror(errno.EMFILE)
        raise ResourceExhausted(f"cannot take the job's process from the shim: {problem}")
    try:
        (pidfd,) = received.fds
        result = received.message["ok"]
        pid, start_time = int(result["pid"]), int(result["start_time"])
        stopped = result.get("stopped") is True
        return Launched(pid, start_time, float(result["started_at"]), pidfd, stopped)
    except (KeyError, TypeError, ValueError) as error:
        _close_all(received.fds)
        raise ShimUnavailable("cannot understand what the shim said of the process") from error


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
