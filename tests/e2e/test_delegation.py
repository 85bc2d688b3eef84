"""A server in a cgroup that was delegated to it: it keeps to a leaf, and its jobs to siblings."""

import contextlib
import pwd
import subprocess

import pytest

from tests.support.delegation import ENTER, DelegatedServer, delegate_to_nobody, mark
from tests.support.processes import JOBWORKER, environment
from tests.support.shim import keepers, shim_pid
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture
def unit(cgroup_root):
    """A cgroup as systemd makes it for a unit with Delegate=; what is above is not the unit's."""
    unit = cgroup_root / "jobworker-test.service"
    unit.mkdir()
    return unit


@pytest.fixture
def delegated(unit, certs, tmp_path):
    """Start a server in the unit's cgroup."""
    with contextlib.ExitStack() as stack:

        def start(*options, **how):
            directory = tmp_path / "server"
            directory.mkdir()
            server = DelegatedServer(directory, certs, unit, *options, **how)
            stack.callback(server.close)
            return server

        yield start


def processes(cgroup):
    return {int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()}


def names(cgroup):
    return {path.name for path in cgroup.iterdir() if path.is_dir()}


def start(server, *command):
    done = server.cli("start", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def own_processes(server):
    return {server.process.pid, shim_pid(server.run_dir), *keepers(server.run_dir)}


def stop(server, job_id):
    assert server.cli("stop", "--grace", "0", job_id).returncode == 0


@pytest.mark.parametrize("told", ["a path", "own", "user.delegate", "trusted.delegate"])
def test_server_and_shim_are_in_a_leaf_and_jobs_in_siblings(delegated, unit, told):
    if told.endswith("delegate"):
        mark(unit, told)
    server = delegated(root={"a path": str(unit), "own": "own"}.get(told, ""))
    job_id = start(server, "sleep", "1000")
    assert processes(unit) == set()
    wait_until(lambda: processes(unit / "server") == own_processes(server))
    assert len(processes(unit / "jobworker" / job_id)) == 1
    assert names(unit) == {"server", "jobworker"}
    stop(server, job_id)


@pytest.mark.parametrize("where", ["", "server"])
def test_job_goes_on_while_the_next_server_is_started_in_the_unit_or_in_its_leaf(
    delegated, unit, where
):
    mark(unit)
    server = delegated()
    job_id = start(server, "sleep", "1000")
    (pid,) = processes(unit / "jobworker" / job_id)
    server.start_in = unit / where
    server.restart()
    wait_until(lambda: processes(unit / "server") == own_processes(server))
    assert processes(unit / "jobworker" / job_id) == {pid}
    assert b"running" in server.cli("status", job_id).stdout
    stop(server, job_id)


def test_other_processes_of_the_unit_are_left_where_they_are(delegated, unit):
    other = subprocess.Popen([*ENTER, unit, "sleep", "1000"])
    try:
        server = delegated(root="own")
        assert server.cli("start", "true").returncode == 0
        assert processes(unit) == {other.pid}
    finally:
        other.kill()
        other.wait()


def test_user_that_owns_the_unit_alone_can_run_jobs_in_it(delegated, unit, cgroup_root):
    delegate_to_nobody(unit)
    mark(unit)
    above = names(cgroup_root)
    server = delegated(as_nobody=True)
    job_id = start(server, "sh", "-c", "id -u; exec sleep 1000")
    assert names(unit) == {"server", "jobworker"}
    uid = pwd.getpwnam("nobody").pw_uid
    assert (unit / "jobworker" / job_id).stat().st_uid == uid
    assert processes(unit) == set()
    stop(server, job_id)
    assert server.cli("output", job_id).stdout == b"%d\n" % uid
    assert b"stopped" in server.cli("status", job_id).stdout
    assert names(cgroup_root) == above


def test_cleanup_leaves_the_leaf(delegated, unit):
    server = delegated("--cleanup", root="own")
    assert names(unit) == {"server", "jobworker"}
    assert server.terminate() == 0
    assert names(unit) == {"server"}


def check(unit, *options, within=()):
    """Run ``jobworker check`` in the unit's cgroup; return what it says, by the thing."""
    command = [*ENTER, unit, *within, *JOBWORKER, "check", "--config", "/dev/null", *options]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    return {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("  ")}


def test_check_says_which_root_and_why_and_what_the_server_will_do(unit):
    mark(unit)
    said = check(unit)
    assert "jobworker-test.service: the server was started in it, and it is marked" in said["root"]
    assert said["hierarchy"].endswith("jobworker-test.service to server below it")
    assert names(unit) == set()


def test_check_says_when_nothing_was_delegated(unit):
    assert "/cgroup2: the default; the server was started in no" in check(unit)["root"]
    assert "the server was started in it" in check(unit, "--cgroup-root", "own")["root"]


@pytest.mark.parametrize("mounted", [True, False])
def test_in_a_namespace_it_is_found_where_a_mount_shows_it(unit, tmp_path, mounted):
    # Only a mount that is made within a cgroup namespace shows the namespace's root at its top, and
    # no other one shows it by a name that can be known there (cgroup_namespaces(7)).
    within = ["unshare", "--cgroup", "--mount"]
    if mounted:
        within += ["sh", "-c", 'mount -t cgroup2 none "$0" && exec "$@"', tmp_path]
    said = check(unit, "--cgroup-root", "own", within=within)["root"]
    if mounted:
        assert f"{tmp_path}: the server was started in it" in said
    else:
        assert "no cgroup2 that is mounted here shows it" in said
