"""A registry's file is brought up to date, or refused as it is: nothing of it is ever harmed."""

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing, suppress

import pytest

from jobworker.errors import ConfigError, RegistryDamaged, ResourceExhausted, Unavailable
from jobworker.job.registry import database, schema
from jobworker.job.registry.listing import JobFilter
from jobworker.job.registry.reader import RegistryReader
from jobworker.job.registry.store import Store
from jobworker.job.state import State
from tests.support.registry import job_record, write_version_1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.db"


def contents(path):
    """What the registry and its log are, as digests: a log that is empty is none."""
    files = [path, path.with_name("jobs.db-wal")]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.exists() and file.stat().st_size
    }


def refused(path):
    """Return why a registry is refused; afterwards it is what it was."""
    before = contents(path)
    with pytest.raises(ConfigError) as refusal:
        Store.open(path)
    assert contents(path) == before
    return str(refusal.value)


def filled(path, count=3, **fields):
    """Make a registry of some jobs."""
    with closing(Store.open(path)) as store:
        for number in range(1, count + 1):
            store.insert(job_record(number, **fields), "")


def killed(path, count=20, statement="SELECT 1", **fields):
    """Make a registry as a killed server leaves it: what it committed last is in the log."""
    alive = path.with_name("alive.db")
    store = Store.open(alive)
    for number in range(1, count + 1):
        store.insert(job_record(number, **fields), "")
    store.read(statement, {})
    for suffix in ("", "-wal"):
        shutil.copy(f"{alive}{suffix}", f"{path}{suffix}")
    store.close()
    return path.with_name("jobs.db-wal")


def overwrite(path, offset, data=b"\xa5" * 64):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def listed(path, asked=None):
    reader = RegistryReader(path)
    try:
        return [record.id for record in reader.read_page(asked or JobFilter(), None, 1000).records]
    finally:
        reader.close()


# Versions


def test_a_registry_of_the_first_version_is_brought_up_to_date(path):
    finished, running = write_version_1(path)
    store = Store.open(path)
    assert store.get(finished).status.exit_code == 3
    assert store.get(finished).spec.labels == {"k": "v", "a": "b"}
    assert [record.id for record in store.unfinished()] == [running]
    assert store.find_request("user_alpha", "r")[0].id == finished
    assert listed(path, JobFilter(name="old", labels={"k": "v", "a": "b"})) == [running, finished]
    assert listed(path, JobFilter(states=frozenset([State.EXITED]))) == [finished]
    store.close()


def test_a_registry_that_was_brought_up_to_date_is_what_a_new_one_is(path, tmp_path):
    write_version_1(path)
    filled(tmp_path / "new.db")

    def tables(path):
        with closing(Store.open(path)) as store:
            found = store.read("SELECT type, name, sql FROM sqlite_schema ORDER BY name", {})
            return [tuple(row) for row in found if not row["name"].startswith("sqlite_")]

    assert tables(path) == tables(tmp_path / "new.db")


@pytest.mark.parametrize("step", range(len(schema.MIGRATIONS[2])))
def test_whichever_step_of_a_migration_fails_the_old_version_is_still_there(
    path, monkeypatch, step
):
    finished, _ = write_version_1(path)
    steps = list(schema.MIGRATIONS[2])
    steps.insert(step, "SELECT no_such_function()")
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", {**schema.MIGRATIONS, 2: tuple(steps)})
        assert "no_such_function" in refused(path)
    store = Store.open(path)
    assert store.get(finished) is not None
    store.close()


def test_a_server_killed_in_the_middle_of_a_migration_leaves_the_old_version(path, monkeypatch):
    finished, _ = write_version_1(path)
    child = os.fork()
    if not child:
        # The pages that were changed are in the log already, without the commit.
        steps = ["PRAGMA cache_size = 1", *schema.MIGRATIONS[2], "SELECT die()"]
        connection = sqlite3.connect(path, isolation_level=None)
        connection.create_function("die", 0, lambda: os.kill(os.getpid(), 9))
        connection.execute("BEGIN IMMEDIATE")
        for statement in steps:
            connection.execute(statement)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    store = Store.open(path)
    assert store.get(finished).status.exit_code == 3
    store.close()


def test_a_registry_of_a_newer_version_is_refused_with_what_to_do(path):
    filled(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    assert f"version {schema.VERSION + 1}" in (said := refused(path))
    assert "newer one" in said


# Damage


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_bytes(b"not a database at all " * 300), id="garbage"),
        pytest.param(lambda path: os.truncate(path, 3 * 4096), id="cut off"),
        pytest.param(lambda path: os.truncate(path, 50), id="cut off in its header"),
        pytest.param(lambda path: overwrite(path, 0), id="header overwritten"),
        pytest.param(lambda path: overwrite(path, 100), id="schema overwritten"),
    ],
)
def test_a_damaged_registry_is_refused_with_what_to_do_and_kept(path, make):
    filled(path, 40)
    make(path)
    said = refused(path)
    assert str(path) in said
    assert "backup" in said


def test_a_damaged_row_of_a_job_that_runs_is_refused_and_kept(path):
    filled(path, state=State.RUNNING)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE jobs SET limits = '{'")
    assert "backup" in refused(path)


def test_a_damaged_registry_whose_log_was_not_empty_is_kept_with_its_log(path):
    killed(path, state=State.RUNNING, statement="UPDATE jobs SET limits = '{'")
    assert len(contents(path)) == 2
    assert "backup" in refused(path)


def test_the_database_of_another_program_is_refused_and_kept(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE jobs (cron TEXT)")
    assert "another program" in refused(path)


@pytest.mark.parametrize("version", [1, 2])
def test_the_database_of_another_program_with_our_version_is_refused(path, version):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
        connection.execute(f"PRAGMA user_version = {version}")
    assert "another program" in refused(path)


def test_a_directory_in_its_place_is_refused_with_what_to_do(path):
    path.mkdir()
    (path / "precious").touch()
    with pytest.raises(ConfigError, match=r"jobs\.db.*move the directory away"):
        Store.open(path)
    assert [*path.iterdir()] == [path / "precious"]


def test_a_locked_registry_is_refused_without_advice_to_move_it_away(path):
    write_version_1(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="end the process") as refusal:
            Store.open(path, patience=0.01)
        assert "move it away" not in str(refusal.value)


# Its log


def test_what_a_killed_server_committed_last_is_there(path):
    killed(path, 20)
    store = Store.open(path)
    assert len(listed(path)) == 20
    store.close()


def test_a_log_that_ends_early_is_no_damage(path):
    log = killed(path, 20)
    os.truncate(log, log.stat().st_size - 1000)
    store = Store.open(path)
    assert len(listed(path)) == 19
    store.close()


@pytest.mark.parametrize("offset", [0, 17, 32 + 9, 32 + 24 + 100], ids=str)
def test_a_damaged_log_is_refused_with_what_to_do_and_kept(path, offset):
    log = killed(path)
    overwrite(log, offset, b"\xa5\x5a\xa5")
    said = refused(path)
    assert str(log) in said
    assert "truncate -s" in said


def test_a_log_cut_off_as_told_is_used(path):
    log = killed(path, 20)
    frame = 24 + 4096
    overwrite(log, 32 + (log.stat().st_size - 32) // frame // 2 * frame + 2000)
    place = refused(path).rpartition("truncate -s ")[2].split()[0]
    os.truncate(log, int(place))
    store = Store.open(path)
    assert 0 < len(listed(path)) < 20
    store.close()


def test_a_log_that_a_restart_of_the_host_has_damaged_is_used_as_far_as_it_goes(path):
    log = killed(path, 20)
    overwrite(log, log.stat().st_size // 2)
    os.utime(log, (1, 1))
    store = Store.open(path)
    assert len(listed(path)) < 20
    store.close()


def test_the_log_is_empty_once_the_registry_is_open(path):
    log = killed(path)
    store = Store.open(path)
    assert log.stat().st_size == 0
    store.close()


# Damage that is met later


def test_a_page_that_is_damaged_later_fails_the_call_that_meets_it(path):
    filled(path, 300)
    store = Store.open(path)
    pages = path.stat().st_size // 4096
    for page in range(2, pages):
        overwrite(path, page * 4096, b"\xff" * 4096)
    with pytest.raises(RegistryDamaged, match="backup"):
        listed(path)
    store.close()


def test_an_index_that_disagrees_with_the_jobs_fails_the_listing(path):
    filled(path)
    with closing(Store.open(path)) as store:
        store.write("UPDATE labels SET number = 99", {})
        store.write("INSERT INTO labels VALUES ('k', 'v', 1.0, 'x', 99)", {})
        with pytest.raises(RegistryDamaged, match="job x"):
            listed(path, JobFilter(labels={"k": "v"}))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, ResourceExhausted),
        (sqlite3.SQLITE_IOERR_WRITE, ResourceExhausted),
        (sqlite3.SQLITE_IOERR_SHMSIZE, ResourceExhausted),
        (sqlite3.SQLITE_NOMEM, ResourceExhausted),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Unavailable),
        (sqlite3.SQLITE_CANTOPEN, Unavailable),
        (sqlite3.SQLITE_READONLY_DBMOVED, Unavailable),
        (sqlite3.SQLITE_CORRUPT_INDEX, RegistryDamaged),
        (sqlite3.SQLITE_IOERR_READ, RegistryDamaged),
    ],
)
def test_what_goes_wrong_with_the_file_has_an_error_of_ours(path, code, kind):
    error = sqlite3.OperationalError("said SQLite")
    error.sqlite_errorcode = code
    with (
        pytest.raises(kind, match=r"cannot read the registry .*jobs\.db: said SQLite; "),
        database.translated("read", path),
    ):
        raise error


def test_a_failed_transaction_leaves_nothing(path):
    with closing(Store.open(path)) as store:
        with suppress(KeyError), store.transaction():
            store.insert(job_record(1), "")
            raise KeyError
        assert store.get(job_record(1).id) is None
        with store.transaction():
            store.insert(job_record(1), "")
        assert store.get(job_record(1).id) is not None
