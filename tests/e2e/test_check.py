"""`jobworker check` as a process: what it says of this host, and its exit status."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobworker.auth import certs as development_certs
from tests.support.processes import jobworker


@pytest.fixture
def place():
    """A directory that other users may look into, unlike those of pytest."""
    directory = Path(tempfile.mkdtemp(prefix="jobworker-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def check(place, cgroup_root):
    """Run ``jobworker check`` for places where jobs could run, but for those that are named."""
    development_certs.init(place / "certs")
    (place / "certs").chmod(0o755)
    config = place / "jobworker.toml"  # The host's own must not be read.
    config.touch()

    def run(*options, as_nobody=False, **places):
        settings = {
            "config": config,
            "listen": "localhost:0",
            "cert": place / "certs" / "jobworker.crt",
            "key": place / "certs" / "jobworker.key",
            "ca": place / "certs" / "ca.crt",
            "log-dir": place / "log",
            "state-dir": place / "state",
            "run-dir": place / "run",
            "cgroup-root": cgroup_root,
        } | {name.replace("_", "-"): path for name, path in places.items()}
        flags = [each for name, path in settings.items() for each in (f"--{name}", path)]
        done = jobworker("check", *flags, *options, as_nobody=as_nobody)
        assert done.stderr == "", done.stderr
        return done

    return run


def findings(done, verdict):
    """Return what is said of each thing with this verdict, by its name."""
    report = json.loads(done.stdout)
    assert report["usable"] == (done.returncode == 0)
    return {f["name"]: f["detail"] for f in report["findings"] if f["verdict"] == verdict}


def test_a_host_that_is_ready_is_said_to_be_and_is_left_as_it_is(check, place, cgroup_root):
    done = check()
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "jobs can run here"
    assert [line for line in lines if not line.startswith(" ")] == [
        "kernel:",
        "cgroups:",
        "certificates:",
        "directories:",
        "network:",
        "jobs can run here",
    ]
    assert sorted(path.name for path in place.iterdir()) == ["certs", "jobworker.toml"]
    assert not (cgroup_root / "jobworker").exists()


def bound_to_v1():
    """Return where controllers that limits need are mounted as cgroup v1, by their name there."""
    mounts = subprocess.check_output(
        ["findmnt", "-rno", "OPTIONS,TARGET", "-t", "cgroup"], text=True
    )
    options = {}
    for line in mounts.splitlines():
        words, target = line.split(" ", 1)
        options |= dict.fromkeys(words.split(","), target)
    return {name: options[name] for name in ("cpu", "memory", "blkio", "pids") if name in options}


def test_on_a_hybrid_host_each_controller_of_v1_is_noted_with_its_place_and_the_remedy(check):
    bound = bound_to_v1()
    if not bound:
        pytest.skip("no controller that limits need is bound to cgroup v1 here")
    done = check("--format", "json")
    assert done.returncode == 0
    notes = findings(done, "note")
    for name, place in bound.items():
        detail = notes["io" if name == "blkio" else name]
        assert f"bound to cgroup v1 at {place}" in detail
        assert "Without it there is no --" in detail
    assert any("cgroup_no_v1=" in detail for detail in notes.values())


def test_text_and_json_say_the_same(check):
    text, structured = check(), check("--format", "json")
    assert structured.returncode == text.returncode == 0
    for finding in json.loads(structured.stdout)["findings"]:
        line = f"  {finding['verdict']:<6}  {finding['name']:<9}  {finding['detail']}"
        assert line in text.stdout.splitlines()


def test_where_there_is_nothing_the_server_would_mount_and_nothing_is_mounted(check, place):
    done = check("--format", "json", cgroup_root=place / "cgroup2")
    assert done.returncode == 0
    assert "cgroup2 mounted there" in findings(done, "ok")["hierarchy"]
    assert not (place / "cgroup2").exists()


def test_a_cgroup_root_that_cannot_be_one_is_named(check, place):
    done = check("--format", "json", cgroup_root=place)
    assert done.returncode == 1
    assert str(place) in findings(done, "failed")["hierarchy"]
    assert (
        check(cgroup_root=place).stdout.splitlines()[-1] == "jobs cannot run here; see what failed"
    )


def test_another_user_is_told_what_it_may_not_use(check, place):
    done = check("--format", "json", as_nobody=True, log_dir="/root/log")
    assert done.returncode == 1
    failed = findings(done, "failed")
    assert "cannot create the cgroup" in failed["hierarchy"]
    assert f"{place / 'certs' / 'jobworker.key'}: Permission denied" in failed["server"]
    assert "may not be written to" in failed["log"]
    assert f"{place} may not be written to" in failed["state"]
    assert findings(done, "note")["user"].startswith("uid ")


def test_another_user_may_be_able_to_run_jobs(check, place, cgroup_root):
    nobody = pwd.getpwnam("nobody").pw_uid
    own = place / "own"
    own.mkdir()
    for path in (own, cgroup_root, place / "certs" / "jobworker.key"):
        os.chown(path, nobody, -1)
    places = {f"{name}_dir": own / name for name in ("log", "state", "run")}
    done = check(as_nobody=True, **places)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["cert", "key", "ca"])
def test_a_missing_certificate_is_a_failure_with_a_remedy(check, place, name):
    done = check("--format", "json", **{name: place / "nothing"})
    assert done.returncode == 1
    (detail,) = findings(done, "failed").values()
    assert f"{place / 'nothing'}: there is no such file; `jobworker certs init {place}`" in detail


def test_an_expired_certificate_is_a_failure(check, place):
    long_ago = datetime.now(UTC) - timedelta(days=20_000)
    development_certs.init(place / "old", now=long_ago)
    old = {"cert": "jobworker.crt", "key": "jobworker.key", "ca": "ca.crt"}
    done = check("--format", "json", **{name: place / "old" / file for name, file in old.items()})
    assert done.returncode == 1
    (detail,) = findings(done, "failed").values()
    assert "expired on" in detail


def test_an_open_key_is_a_note_and_said_once(check, place):
    key = place / "certs" / "jobworker.key"
    key.chmod(0o644)
    done = check()
    assert done.returncode == 0
    assert done.stdout.count(f"the private key {key} is open to every user") == 1


@pytest.fixture
def mount(place):
    """Mount a tmpfs with `options`; it is unmounted when the test is over."""
    mounted = []

    def mount(options):
        directory = place / "mounted"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory]
        subprocess.run(command, check=True)
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("name", ["log", "state", "run"])
def test_a_directory_that_is_read_only_is_a_failure(check, mount, name):
    directory = mount("ro")
    done = check("--format", "json", **{f"{name}_dir": directory / "made" / "later"})
    assert done.returncode == 1
    assert findings(done, "failed") == {
        name: f"cannot use {directory}/made/later: {directory} is on a file system that is "
        "read-only"
    }


def test_a_directory_without_room_is_a_failure(check, mount):
    directory = mount("size=64k")
    with pytest.raises(OSError, match="No space left"), (directory / "fill").open("wb") as file:
        file.write(bytes(1024 * 1024))
    done = check("--format", "json", log_dir=directory)
    assert done.returncode == 1
    assert findings(done, "failed") == {"log": f"{directory}: 0 MiB free"}


def test_a_directory_with_little_room_is_a_note(check, mount):
    done = check("--format", "json", log_dir=mount("size=1m"))
    assert done.returncode == 0
    assert "MiB free" in findings(done, "note")["log"]


def test_a_directory_that_takes_no_more_files_is_a_failure(check, mount):
    done = check("--format", "json", log_dir=mount("nr_inodes=1"))
    assert done.returncode == 1
    assert "takes no more files" in findings(done, "failed")["log"]


def test_a_file_in_the_place_of_a_directory_is_a_failure(check, place):
    done = check("--format", "json", state_dir=place / "jobworker.toml" / "state")
    assert done.returncode == 1
    assert "jobworker.toml is not a directory" in findings(done, "failed")["state"]


def test_a_setting_that_serve_would_refuse_is_refused_in_the_same_words(place):
    config = place / "jobworker.toml"
    config.write_text('output-max = "1K"')
    done = [jobworker(command, "--config", config) for command in ("check", "serve")]
    assert [each.returncode for each in done] == [2, 2]
    refusals = [each.stderr.splitlines()[0] for each in done]
    assert refusals[0] == refusals[1]
    assert f"output-max in {config}: '1K' is too little" in refusals[0]


def test_an_audit_log_that_could_not_be_written_is_a_failure(check, mount, place):
    directory = mount("ro")
    done = check("--format", "json", audit_log=directory / "audit" / "log")
    assert done.returncode == 1
    assert findings(done, "failed") == {
        "audit log": f"cannot use {directory}/audit: {directory} is on a file system that is "
        "read-only"
    }
    (place / "state" / "audit.log").mkdir(parents=True)
    done = check("--format", "json")
    assert done.returncode == 1
    assert findings(done, "failed") == {
        "audit log": f"cannot use {place}/state/audit.log: it is not a file"
    }


def test_an_audit_log_elsewhere_has_a_line_of_its_own(check, place):
    done = check("--format", "json", audit_log=place / "audit.log")
    assert done.returncode == 0
    assert str(place) in findings(done, "ok")["audit log"]
