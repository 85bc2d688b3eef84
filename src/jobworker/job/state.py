"""Which states a job can be in, and which events lead from one to the next. Pure: no I/O.

The table `TRANSITIONS` is the only place that knows; the diagram in ARCHITECTURE.md is drawn from
it by `diagram`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobworker.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(enum.Enum):
    """Where a job stands."""

    PENDING = "pending"
    """Accepted and recorded; the command has not been executed yet."""
    RUNNING = "running"
    """The command was executed; its cgroup may hold processes."""
    STOPPED = "stopped"
    """Ended because jobworker was told to end it."""
    EXITED = "exited"
    """Ended by itself: with an exit code, or by a signal."""
    LOST = "lost"
    """The end was not observed."""

    @property
    def finished(self) -> bool:
        """Whether nothing follows this state."""
        return not TRANSITIONS[self]


class Event(enum.Enum):
    """What happens to a job."""

    START = "start"
    """execve succeeded."""
    EXIT = "exit"
    """The main process ended without having been told to."""
    STOP = "stop"
    """The main process ended after a stop request or the end of its time."""
    LOSE = "lose"
    """Nobody could see how the main process ended."""


class Reason(enum.Enum):
    """Why a job has ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    STOPPED = "stopped"
    OUT_OF_MEMORY = "out of memory"
    TIMED_OUT = "timed out"
    LOST = "lost"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        State.PENDING: MappingProxyType(
            {
                Event.START: State.RUNNING,
                Event.EXIT: State.EXITED,
                Event.STOP: State.STOPPED,
                Event.LOSE: State.LOST,
            }
        ),
        State.RUNNING: MappingProxyType(
            {Event.EXIT: State.EXITED, Event.STOP: State.STOPPED, Event.LOSE: State.LOST}
        ),
        State.STOPPED: MappingProxyType({}),
        State.EXITED: MappingProxyType({}),
        State.LOST: MappingProxyType({}),
    }
)
"""State → event → next state. A pending job may end without *running* having been seen: the
server can die between the launch and its record, and learn of both from the exit record."""


def transition(state: State, event: Event) -> State:
    """Return the state that follows `state` on `event`.

    Raises IllegalTransition if the table has no such row.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"a job that is {state.value} cannot {event.value}") from None


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job's state and, once it has finished, how it ended.

    `exit_code` (0…255) and `signal` are kept apart and never reinterpreted: at most one is set.
    """

    state: State
    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""


def diagram() -> str:
    """Draw the transition table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.PENDING.value}"]
    for state, row in TRANSITIONS.items():
        lines += [f"    {state.value} --> {to.value}: {event.value}" for event, to in row.items()]
        if not row:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join(lines)
