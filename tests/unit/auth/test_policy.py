"""Who may call what."""

from datetime import UTC, datetime, timedelta

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from jobworker.auth.identity import Identity
from jobworker.auth.policy import METHOD_ROLES, Policy, Role
from jobworker.errors import ConfigError, PermissionDenied
from jobworker.rpc.v1 import jobworker_pb2

SERVICE = "/jobworker.v1.JobWorkerService"
NOW = datetime.now(UTC)
METHODS = [
    f"/{service.full_name}/{method.name}"
    for module in (jobworker_pb2, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def user(name: str) -> Identity:
    return Identity(name, serial="1", fingerprint="00", not_after=NOW + timedelta(days=1))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_role(method):
    assert method in METHOD_ROLES


def test_every_row_is_a_method():
    reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    assert set(METHOD_ROLES) == {*METHODS, reflection}


@pytest.mark.parametrize("method", METHODS)
def test_user_alpha_may_call_everything(method):
    assert Policy().authorize(user("user_alpha"), method) is METHOD_ROLES[method]


@pytest.mark.parametrize("method", ["Status", "Output"])
def test_user_bravo_may_query(method):
    assert Policy().authorize(user("user_bravo"), f"{SERVICE}/{method}") is Role.QUERY


@pytest.mark.parametrize(("method", "what"), [("Start", "start jobs"), ("Stop", "stop jobs")])
def test_user_bravo_may_not_mutate(method, what):
    with pytest.raises(PermissionDenied) as refusal:
        Policy().authorize(user("user_bravo"), f"{SERVICE}/{method}")
    assert str(refusal.value) == f"user_bravo may not {what}: that needs the role mutate"


def test_a_method_that_no_role_allows_is_named_by_its_path():
    with pytest.raises(PermissionDenied, match=f"user_alpha may not call {SERVICE}/New: "):
        Policy().authorize(user("user_alpha"), f"{SERVICE}/New")


@pytest.mark.parametrize("name", ["mallory", "USER_ALPHA", "user_alpha.", "jobworker"])
def test_an_unknown_user_may_do_nothing(name):
    with pytest.raises(PermissionDenied, match="knows no such user"):
        Policy().authorize(user(name), f"{SERVICE}/Status")


@pytest.mark.parametrize(
    "method", ["", f"{SERVICE}/", f"{SERVICE}/start", "Start", f"{SERVICE}/New"]
)
def test_a_method_without_a_row_is_refused(method):
    with pytest.raises(PermissionDenied, match="no role allows this method"):
        Policy().authorize(user("user_alpha"), method)


def test_a_certificate_that_has_expired_since_is_refused():
    late = NOW + timedelta(days=1, seconds=1)
    with pytest.raises(PermissionDenied, match="the client certificate expired on"):
        Policy().authorize(user("user_alpha"), f"{SERVICE}/Status", now=late)


def test_a_policy_does_not_change_with_the_map_it_was_made_from():
    users = {"user_bravo": frozenset({Role.QUERY})}
    policy = Policy(users)
    users["user_bravo"] = frozenset(Role)
    assert policy.users["user_bravo"] == {Role.QUERY}


def test_a_policy_without_users_lets_nobody_in():
    with pytest.raises(PermissionDenied):
        Policy({}).authorize(user("user_alpha"), f"{SERVICE}/Status")


def test_roles_are_read_by_name():
    policy = Policy.from_names({"carol": ["query", "mutate"], "dave": ["query"], "eve": []})
    assert policy.users == {"carol": frozenset(Role), "dave": {Role.QUERY}, "eve": frozenset()}


def test_an_unknown_role_is_named():
    with pytest.raises(ConfigError, match=r"carol has the unknown role 'admin'; .* mutate, query"):
        Policy.from_names({"carol": ["query", "admin"]})


def test_a_role_outside_a_list_is_one_role():
    assert Policy.from_names({"carol": "query"}).users == {"carol": {Role.QUERY}}


def test_a_user_that_no_certificate_could_name_is_refused():
    with pytest.raises(ConfigError, match="'carol smith' cannot be a user's name"):
        Policy.from_names({"carol smith": ["query"]})
