"""The composition root of the server: what is made, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jobworker import cgroups, garbage, heap, job
from jobworker.auth import tls
from jobworker.auth.audit import Audit
from jobworker.daemon import listen
from jobworker.errors import ConfigError
from jobworker.job.service import DEFAULT_CGROUP_ROOT
from jobworker.rpc import keepalive
from jobworker.rpc.defaults import MAX_MESSAGE
from jobworker.rpc.guard import Guard
from jobworker.rpc.server import JobWorker
from jobworker.rpc.v1 import jobworker_pb2 as pb
from jobworker.rpc.v1 import jobworker_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jobworker.auth.policy import Policy
    from jobworker.job.retention import Retention
    from jobworker.job.slots import RunningLimits

log = logging.getLogger(__name__)

_PATIENCE: Final = 5.0
"""Seconds that calls under way are given to end when the server shuts down."""
_TURN_AWAY_PATIENCE: Final = 2.0
"""Seconds that a server which shuts down takes calls to refuse them; then gRPC cancels them."""
_MAX_PENDING: Final = 100_000
"""Calls of all clients together; each takes some kilobytes until it is taken up."""
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.so_reuseport", 0),
    # By default gRPC cancels calls at random where more than 1000 have come and not been taken yet:
    # those of as many followers or waiters that come back at once when the server is there again.
    ("grpc.server.max_pending_requests", _MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
    # What each stream may hold besides the chunk that is being sent; by default 64 KiB, which a
    # thousand clients that do not read would have the server keep.
    ("grpc.http2.write_buffer_size", 1),
    *keepalive.server_options(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a server is told."""

    host: str
    port: int
    cert: Path
    key: Path
    ca: Path
    log_dir: Path
    state_dir: Path
    run_dir: Path
    cgroup_root: Path | None
    audit_log: Path
    output_max: int | None
    cleanup: bool
    policy: Policy
    retention: Retention
    running: RunningLimits
    max_streams_per_user: int | None


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the address once clients can connect.

    Raises ConfigError, CgroupUnavailable, AlreadyLocked or ShimUnavailable if that cannot begin.
    """
    _raise_descriptor_limit()
    heap.keep()
    stopped = _stop_signals()
    async with AsyncExitStack() as stack:
        audit = Audit.open(settings.audit_log)
        stack.callback(audit.close)
        credentials = tls.server_credentials(settings.cert, settings.key, settings.ca)
        garbage.look_from_now_on()  # The last modules came with the credentials.
        root = cgroups.choose_root(settings.cgroup_root, default=DEFAULT_CGROUP_ROOT)
        jobs = job.Service(
            log_dir=settings.log_dir,
            state_dir=settings.state_dir,
            run_dir=settings.run_dir,
            cgroup_root=root.path,
            output_max_bytes=settings.output_max,
            retention=settings.retention,
            running=settings.running,
            on_change=lambda change: _audit_change(audit, change),
        )
        if settings.cleanup:
            stack.callback(jobs.cgroups.cleanup)
        await stack.enter_async_context(jobs)
        if count := jobs.unfinished:
            log.info("jobs of an earlier server found running: %d", count)
        guard = Guard(settings.policy, audit, max_streams_per_user=settings.max_streams_per_user)
        server = grpc.aio.server(interceptors=[guard], options=_OPTIONS)
        healthy = await _add_services(server, JobWorker(jobs))
        port = _bind(server, settings, credentials)
        await server.start()
        stack.push_async_callback(_shut_down, server, guard, healthy)
        await _refuse_old_tls(settings, port)
        address = listen.client_address(settings.host, port)
        log.debug("serving on %s", address)
        ready(address)
        log.info("the root of the jobs' cgroups is %s: %s", root.path, root.reason)
        _notify("READY=1")
        await stopped.wait()
        log.info("shutting down; jobs go on running")
        _notify("STOPPING=1")


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    return stopped


def _audit_change(audit: Audit, change: job.Change) -> None:
    record = change.job.record
    fields: dict[str, Any] = {"user": change.user or record.owner, "command": record.spec.command}
    if change.event == "removed":
        fields["user"] = change.user
        fields["why"] = "" if change.user else "retention"
    if change.event == "limits updated":
        fields["limits"] = asdict(record.limits, dict_factory=_without_absent)
    if change.signal:
        fields["sent"] = change.signal
    if record.finished:
        status = record.status
        fields["status"] = status.state.value
        fields["reason"] = status.reason.value if status.reason else ""
        fields["exit_code"] = status.exit_code
        fields["signal"] = status.signal
    audit.change(change.event, job_id=record.id, **fields)


def _without_absent(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if value not in (None, ())}


async def _add_services(server: grpc.aio.Server, worker: JobWorker) -> health.aio.HealthServicer:
    pb_grpc.add_JobWorkerServiceServicer_to_server(worker, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    name = pb.DESCRIPTOR.services_by_name["JobWorkerService"].full_name
    await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (name, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return healthy


def _bind(server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials) -> int:
    port = listen.free_port(settings.host, settings.port)
    where = listen.address(settings.host or "::", port)
    try:
        bound = server.add_secure_port(where, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {where}: gRPC refused the address") from error
    if bound != port:
        raise ConfigError(f"cannot listen on {where}: gRPC got port {bound}")
    return port


async def _refuse_old_tls(settings: Settings, port: int) -> None:
    """Connect to ourselves with TLS 1.2: serving is refused if that gets through."""
    host = listen.reachable_host(settings.host)
    if await tls.probe_tls12(host, port):
        raise ConfigError("cannot serve: a TLS 1.2 handshake succeeds, only TLS 1.3 must")


async def _shut_down(
    server: grpc.aio.Server, guard: Guard, healthy: health.aio.HealthServicer
) -> None:
    await healthy.enter_graceful_shutdown()
    closing = asyncio.create_task(guard.close(_PATIENCE))
    await guard.turn_away(_TURN_AWAY_PATIENCE)
    await server.stop(_PATIENCE)
    await closing


def _notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(state.encode(), address.replace("@", "\0", 1))
        except OSError as error:
            log.warning("cannot tell %s that %s: %s", address, state, error.strerror)
