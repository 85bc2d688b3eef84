"""Decides who may call which method: one table of methods, one of users. Pure: no I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from jobworker.auth.identity import COMMON_NAME, COMMON_NAME_RULE
from jobworker.errors import ConfigError, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobworker.auth.identity import Identity


class Role(enum.Enum):
    """What a user may do."""

    MUTATE = "mutate"
    """Start and stop jobs, and everything else that changes one."""
    QUERY = "query"
    """Ask for a job's status and output, and everything else that only looks."""


METHOD_ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {
        "/jobworker.v1.JobWorkerService/Start": Role.MUTATE,
        "/jobworker.v1.JobWorkerService/Stop": Role.MUTATE,
        "/jobworker.v1.JobWorkerService/Status": Role.QUERY,
        "/jobworker.v1.JobWorkerService/Output": Role.QUERY,
        "/jobworker.v1.JobWorkerService/UpdateLimits": Role.MUTATE,
        "/jobworker.v1.JobWorkerService/Pause": Role.MUTATE,
        "/jobworker.v1.JobWorkerService/Resume": Role.MUTATE,
        "/jobworker.v1.JobWorkerService/Stats": Role.QUERY,
        "/jobworker.v1.JobWorkerService/List": Role.QUERY,
        "/jobworker.v1.JobWorkerService/Wait": Role.QUERY,
        "/jobworker.v1.JobWorkerService/Watch": Role.QUERY,
        "/jobworker.v1.JobWorkerService/Signal": Role.MUTATE,
        "/jobworker.v1.JobWorkerService/Remove": Role.MUTATE,
        "/grpc.health.v1.Health/Check": Role.QUERY,
        "/grpc.health.v1.Health/List": Role.QUERY,
        "/grpc.health.v1.Health/Watch": Role.QUERY,
        # Clients such as grpcurl ask for v1 first and fall back when it is not implemented, which
        # they would not do if it was refused.
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Role.QUERY,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.QUERY,
    }
)
"""A method's full gRPC path → the role it needs. A method that is not here is refused."""

_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/jobworker.v1.JobWorkerService/Start": "start jobs",
        "/jobworker.v1.JobWorkerService/Stop": "stop jobs",
        "/jobworker.v1.JobWorkerService/Status": "ask for the status of jobs",
        "/jobworker.v1.JobWorkerService/Output": "read the output of jobs",
        "/jobworker.v1.JobWorkerService/UpdateLimits": "change the limits of jobs",
        "/jobworker.v1.JobWorkerService/Pause": "pause jobs",
        "/jobworker.v1.JobWorkerService/Resume": "resume jobs",
        "/jobworker.v1.JobWorkerService/Stats": "ask what jobs use",
        "/jobworker.v1.JobWorkerService/List": "list jobs",
        "/jobworker.v1.JobWorkerService/Wait": "wait for jobs",
        "/jobworker.v1.JobWorkerService/Watch": "watch jobs",
        "/jobworker.v1.JobWorkerService/Signal": "send signals to jobs",
        "/jobworker.v1.JobWorkerService/Remove": "remove jobs",
    }
)
"""What a method does, to complete "user_bravo may not …"; without it the path says it."""

SEED_USERS: Final[Mapping[str, frozenset[Role]]] = MappingProxyType(
    {
        "user_alpha": frozenset({Role.MUTATE, Role.QUERY}),
        "user_bravo": frozenset({Role.QUERY}),
    }
)
"""The users of a server whose configuration names none."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Which roles each user has, by the Common Name of the user's certificate."""

    users: Mapping[str, frozenset[Role]] = field(default_factory=lambda: SEED_USERS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "users", MappingProxyType(dict(self.users)))

    @classmethod
    def from_names(cls, users: Mapping[str, Iterable[str]]) -> Policy:
        """Build a policy from the names of roles, as a configuration file has them.

        Raises ConfigError for a role that does not exist, and for a user whose name no certificate
        could carry.
        """
        return cls({user: _roles(user, names) for user, names in users.items()})

    def authorize(self, identity: Identity, method: str, *, now: datetime | None = None) -> Role:
        """Let `identity` call `method` (its full path), and return the role that allows it.

        Raises PermissionDenied if nobody may call the method, the user is unknown or lacks the
        role, or the certificate has expired at `now` (by default the current time): a connection
        can outlive the certificate it was made with.
        """
        user = identity.common_name
        may_not = f"{user} may not {_WORDS.get(method, f'call {method}')}"
        role = METHOD_ROLES.get(method)
        if role is None:
            raise PermissionDenied(f"{may_not}: no role allows this method")
        if identity.not_after < (now or datetime.now(UTC)):
            raise PermissionDenied(
                f"{may_not}: the client certificate expired on "
                f"{identity.not_after.isoformat()}; connect with a new one"
            )
        roles = self.users.get(user)
        if roles is None:
            raise PermissionDenied(f"{may_not}: this server knows no such user")
        if role not in roles:
            raise PermissionDenied(f"{may_not}: that needs the role {role.value}")
        return role


def _roles(user: str, names: Iterable[str]) -> frozenset[Role]:
    if not COMMON_NAME.fullmatch(user):
        raise ConfigError(f"users: {user!a} cannot be a user's name: {COMMON_NAME_RULE}")
    names = [names] if isinstance(names, str) else list(names)
    known = {role.value: role for role in Role}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"users: {user} has the unknown role {name!r}; the roles are {', '.join(known)}"
            )
    return frozenset(known[name] for name in names)
