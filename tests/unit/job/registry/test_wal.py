"""The log that SQLite really writes, damaged in every way that can be told from its early end."""

import sqlite3
import struct
from contextlib import closing

import pytest

from jobworker.job.registry import wal
from jobworker.job.registry.wal import damage

FRAME = 24 + 4096


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "any.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for number in range(6):
            connection.execute("INSERT INTO t VALUES (?)", (str(number) * 3000,))
        return path.with_name("any.db-wal").read_bytes()


def changed(log, offset, data=b"\xa5"):
    return log[:offset] + data + log[offset + len(data) :]


def test_a_log_as_it_was_written_is_sound(log):
    assert len(log) > 6 * FRAME
    assert damage(log) is None


def test_a_log_that_ends_anywhere_is_sound(log):
    for length in [*range(40), *range(40, len(log), 509)]:
        assert damage(log[:length]) is None, length


@pytest.mark.parametrize("offset", range(32))
def test_a_changed_header_is_damage(log, offset):
    assert damage(changed(log, offset, bytes([log[offset] ^ 1]))) == 0


@pytest.mark.parametrize(("word", "value"), [(0, 0x377F0684), (1, 3007001), (2, 1000), (2, 0)])
def test_a_header_that_adds_up_and_says_what_sqlite_never_does_is_damage(log, word, value):
    words = list(struct.unpack_from(">6I", log))
    words[word] = value
    head = struct.pack(">6I", *words)
    sums = wal._sums(head, (0, 0), big_endian=bool(words[0] & 1))
    assert damage(head + struct.pack(">2I", *sums) + log[32:]) == 0


def test_a_log_that_never_arrived_is_sound():
    assert damage(bytes(5 * FRAME)) is None


@pytest.mark.parametrize("part", [0, 9, 17, 24, 2000, FRAME - 1])
def test_a_changed_frame_before_a_commit_is_damage(log, part):
    offset = 32 + 2 * FRAME + part
    assert damage(changed(log, offset, bytes([log[offset] ^ 1]))) == 32 + 2 * FRAME


def test_a_changed_last_frame_is_as_if_it_had_not_been_written(log):
    last = (len(log) - 32) // FRAME - 1
    assert damage(changed(log, 32 + last * FRAME + 100)) is None


def test_two_changed_last_frames_are_as_if_neither_had_been_written(log):
    last = (len(log) - 32) // FRAME - 1
    both = changed(log, 32 + (last - 1) * FRAME + 100)
    assert damage(changed(both, 32 + last * FRAME + 100)) is None


def test_a_changed_frame_of_a_commit_that_is_not_whole_is_no_damage(tmp_path):
    path = tmp_path / "any.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        begin = len(path.with_name("any.db-wal").read_bytes())
        connection.execute("INSERT INTO t VALUES (?)", ("x" * 30_000,))
        large = path.with_name("any.db-wal").read_bytes()
    assert len(large) > begin + 4 * FRAME
    broken = changed(large, begin + 100)
    assert damage(broken) == begin
    assert damage(broken[:-FRAME]) is None


def test_frames_of_an_earlier_use_of_the_file_are_no_damage(tmp_path):
    path = tmp_path / "any.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for number in range(20):
            connection.execute("INSERT INTO t VALUES (?)", (str(number) * 3000,))
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        connection.execute("INSERT INTO t VALUES (1)")
        again = path.with_name("any.db-wal").read_bytes()
    assert len(again) > 10 * FRAME
    assert damage(again) is None


def test_frames_that_were_written_again_after_a_failed_commit_are_no_damage(log):
    # A transaction's last frame is there but for its data; a shorter one took its place, then.
    stale = changed(log, 32 + 4 * FRAME + 500, bytes(3000))
    assert damage(stale[: 32 + 5 * FRAME]) is None
