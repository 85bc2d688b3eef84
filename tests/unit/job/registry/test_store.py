import sqlite3
import stat
from contextlib import closing
from dataclasses import replace

import pytest

from jobworker.cgroups import MAX, CpuMax, DeviceLimit, Limits
from jobworker.errors import ConfigError, RequestConflict, Unavailable
from jobworker.job.record import JobRecord, Process
from jobworker.job.registry import database
from jobworker.job.registry.schema import VERSION
from jobworker.job.registry.store import Store
from jobworker.job.spec import JobSpec, StopPolicy
from jobworker.job.state import JobStatus, Reason, State

PENDING = JobRecord(
    id="j1",
    owner="user_alpha",
    spec=JobSpec(
        command="sh",
        args=("-c", "echo ü"),
        limits=Limits(memory_max=MAX, cpu_max=CpuMax(1, 2), io_max_rbps=(DeviceLimit("", 5),)),
        request_id="r1",
        env={"A": "1"},
        user="nobody",
        timeout=1.5,
        stop=StopPolicy(signal=2, grace=0.5),
        name="n",
        labels={"k": "v"},
    ),
    created_at=12.5,
    warnings=("careful",),
)
RUNNING = replace(
    PENDING,
    status=JobStatus(State.RUNNING),
    process=Process(boot_id="b", pid=7, start_time=9),
    started_at=13.5,
    limits=Limits(memory_max=4096),
)
FINISHED = replace(
    RUNNING,
    status=JobStatus(State.EXITED, signal=9, reason=Reason.OUT_OF_MEMORY, message="m"),
    ended_at=14.5,
    output_size=0,
    usage={"oom_kills": 1},
)


@pytest.mark.parametrize("record", [PENDING, RUNNING, FINISHED])
def test_a_record_comes_back_as_it_went_in(store, tmp_path, record):
    store.insert(PENDING, "f")
    store.update(record)
    other = Store.open(tmp_path / "jobs.db")
    assert other.get("j1") == record
    other.close()


def test_only_unfinished_jobs_are_found_at_the_start(store):
    store.insert(PENDING, "f")
    store.insert(replace(FINISHED, id="j2", spec=replace(FINISHED.spec, request_id="")), "f")
    assert [record.id for record in store.unfinished()] == ["j1"]


def test_an_end_is_recorded_once_and_the_first_one_stays(store):
    store.insert(PENDING, "f")
    assert store.finish(FINISHED)
    assert not store.finish(replace(FINISHED, output_size=7))
    assert store.get("j1") == FINISHED
    store.delete("j1")
    assert not store.finish(FINISHED)


def test_an_unknown_job_is_none(store):
    assert store.get("j1") is None


def test_a_deleted_job_is_gone_and_may_be_deleted_again(store):
    store.insert(PENDING, "f")
    store.insert(replace(PENDING, id="j2", owner="user_bravo"), "f")
    store.delete("j1")
    store.delete("j1")
    assert store.get("j1") is None
    assert store.get("j2") is not None


def test_a_request_id_belongs_to_one_job_of_its_owner(store):
    store.insert(PENDING, "f")
    assert store.find_request("user_alpha", "r1") == (PENDING, "f")
    assert store.find_request("user_bravo", "r1") is None
    with pytest.raises(RequestConflict, match="r1"):
        store.insert(replace(PENDING, id="j2"), "f")
    store.insert(replace(PENDING, id="j3", owner="user_bravo"), "f")


def test_jobs_without_a_request_id_do_not_collide(store):
    anonymous = replace(PENDING, spec=replace(PENDING.spec, request_id=""))
    store.insert(anonymous, "f")
    store.insert(replace(anonymous, id="j2"), "f")


def test_the_registry_is_for_its_owner_alone(store, tmp_path):
    assert stat.S_IMODE((tmp_path / "jobs.db").stat().st_mode) == 0o600


def test_a_registry_waits_for_the_disk_only_when_its_log_is_put_into_the_file(
    tmp_path, settings_of_a_registry, monkeypatch
):
    """Which costs a call nothing, and leaves a sound file when the power fails."""
    monkeypatch.setattr(database, "_SETTINGS", settings_of_a_registry)
    with closing(Store.open(tmp_path / "jobs.db")) as store:
        modes = [
            store._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    assert modes == ["wal", 1]  # 1 is NORMAL (sqlite.org/pragma.html#pragma_synchronous)


def test_a_file_that_is_no_registry_is_refused_and_kept(tmp_path):
    path = tmp_path / "jobs.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(ConfigError, match=r"jobs\.db"):
        Store.open(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_registry_of_a_newer_version_is_refused(store, tmp_path):
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match=f"version {VERSION + 1}"):
        Store.open(tmp_path / "jobs.db")


def test_a_damaged_row_is_refused_with_what_to_do(store, tmp_path):
    store.insert(PENDING, "f")
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("UPDATE jobs SET spec = '{'")
    connection.close()
    with pytest.raises(ConfigError, match=r"jobs\.db.*backup"):
        store.unfinished()


@pytest.mark.usefixtures("store")
def test_a_registry_that_somebody_has_locked_is_unavailable_soon(tmp_path):
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    hasty = Store.open(tmp_path / "jobs.db", patience=0.01)
    with pytest.raises(Unavailable, match="locked"):
        hasty.insert(PENDING, "f")
    hasty.close()
    other.close()


def test_a_symlink_is_not_followed(tmp_path):
    (tmp_path / "jobs.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        Store.open(tmp_path / "jobs.db")
    assert not (tmp_path / "elsewhere").exists()


def test_a_finished_record_needs_its_final_size():
    with pytest.raises(ValueError, match="output size"):
        replace(FINISHED, output_size=None)
