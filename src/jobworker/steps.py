"""The steps between which a process may die, by name: what tests of crashes hold on to.

`reached` says that a step has been taken. In production nobody listens, and it does nothing.
`jobworker.testing.faults` listens, and kills the server, the shim or both at the step it was told.
Imports nothing: the shim loads it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TABLE = {
    # Start
    "server.start.recorded": "The intent to start a job is in the registry, and nothing else is.",
    "server.start.cgroup_made": "The job's cgroup has its limits.",
    "server.start.directory_made": "The job's log directory holds its empty output.",
    "server.start.sent": "The launch was handed to the shim's socket.",
    "shim.launch.received": "The shim has understood the launch, and has done nothing yet.",
    "shim.launch.cloned": "The job's process exists, and may not have executed its command yet.",
    "child.launch.executing": "The job's process, still ours, is about to execute its command.",
    "shim.launch.executed": "The shim knows that the command was executed, and has told nobody.",
    "shim.launch.answered": "The shim has told the server that the command was executed.",
    "server.start.executed": "The server has heard that the command was executed.",
    "server.start.running_recorded": "The registry knows the job's process.",
    "server.start.answering": "The client is about to get the job's id.",
    # A start that fails
    "shim.failed.known": "The shim knows that the command cannot be executed; nobody else does.",
    "server.abandon.emptied": "The cgroup of a job that did not start has no process.",
    "server.abandon.cgroup_removed": "The cgroup of a job that did not start is gone.",
    "server.abandon.directory_removed": "So is its log directory; its record is still there.",
    "server.abandon.deleted": "Nothing is left of a job that did not start.",
    # Stop
    "server.stop.accepted": "The server has been asked to stop a job, and has told nobody.",
    "server.stop.sent": "The stop was handed to the shim's socket.",
    "shim.stop.received": "The shim has understood the stop, and has signalled nobody.",
    "shim.stop.signalled": "The job has been asked to end; its grace period runs in the shim.",
    "server.stop.taken": "The server knows that the shim carries the stop out.",
    "shim.deadline.due": "A time limit or a grace period is over; the job knows nothing of it.",
    "server.stop.answering": "The client is about to hear that the job was stopped.",
    # The end of a job
    "shim.end.reaped": "The main process has ended; how, is in the shim's memory alone.",
    "shim.end.emptied": "No process of the job is left.",
    "shim.end.usage_read": "The end is complete, in the shim's memory alone.",
    "shim.end.record_begun": "The exit record is written, under its temporary name.",
    "shim.end.record_written": "The exit record is in its place.",
    "shim.end.cgroup_removed": "The job's cgroup is gone.",
    "shim.end.told": "All servers that are connected have been sent the end.",
    "server.end.received": "The server has heard of the end.",
    "server.end.recorded": "The end is in the registry.",
    "server.end.told": "Those who wait for the job and those who follow it have been told.",
    # Removal
    "server.remove.recorded": "The registry has forgotten jobs, and knows whose files have to go.",
    "server.remove.files_removed": "The files of jobs that are removed are gone.",
    "server.remove.finished": "Nothing is left of jobs that are removed.",
    "server.remove.answering": "The client is about to hear that the job was removed.",
    # The start of a server
    "server.recovery.locked": "The server owns its directories.",
    "server.recovery.registry_opened": "The registry is open.",
    "server.recovery.cgroups_ready": "The cgroups of jobs have their place.",
    "server.recovery.connected": "The shim has said which jobs it has.",
    "server.recovery.reconciling": "The server is about to find out what became of a job.",
    "server.recovery.reconciled": "The server knows who has which job.",
    "server.recovery.done": "The service is complete, and serves nobody yet.",
    # The life of the shim
    "shim.begin.locked": "The shim's lock is taken, and nobody listens.",
    "shim.begin.listening": "The shim listens, and is not in the background yet.",
    "shim.begin.serving": "The shim is about to accept its first connection.",
    "shim.leave.retired": "The shim has taken its socket away, because it has nothing left to do.",
}
"""Name → what is true when it is reached. The name begins with the process that reaches it: the
server, the shim, or the child of the shim that becomes the command."""

_listener: Callable[[str], None] | None = None


def reached(name: str) -> None:
    """Say that the step `name` of TABLE has been taken."""
    if _listener is not None:
        _listener(name)


def listen(listener: Callable[[str], None] | None) -> None:
    """Have `listener` called with each step that this process reaches; None ends that."""
    global _listener  # noqa: PLW0603 - one process, one listener
    _listener = listener
