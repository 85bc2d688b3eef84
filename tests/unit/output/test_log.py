from __future__ import annotations

import errno
import fcntl
import os
import resource
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker import holes, output
from jobworker.errors import ConfigError, FailedPrecondition, InvalidArgument, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB = "5f0c3a52-4d0e-4e7f-9d4b-0d8f3c1b2a69"

NOT_IDS = [
    "",
    ".",
    "..",
    "../" + JOB,
    JOB + "/..",
    JOB + "\0",
    JOB + "\n",
    JOB.upper(),
    "{" + JOB + "}",
    "urn:uuid:" + JOB,
    JOB.replace("-", ""),
    "output",
]


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open `count` more descriptors."""
    probes = [os.open("/", os.O_PATH) for _ in range(count + 1)]
    for fd in probes:
        os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probes[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestCreate:
    def test_standard_error_has_a_file_only_if_it_is_kept_apart(self, log_dir, open_fds):
        before = open_fds()
        with output.Log.create(log_dir, JOB) as log:
            assert log.stderr_fd is None
            assert list((log_dir / JOB).iterdir()) == [log_dir / JOB / "output"]
        output.remove(log_dir, JOB)
        with output.Log.create(log_dir, JOB, split_stderr=True) as log:
            os.write(log.stderr_fd, b"error")
            assert mode(log_dir / JOB / "stderr") == 0o600
            assert fcntl.fcntl(log.stderr_fd, fcntl.F_GETFL) & os.O_APPEND
        assert output.size(log_dir, JOB, output.Stream.STDERR) == 5
        assert output.size(log_dir, JOB) == 0
        output.remove(log_dir, JOB)
        assert list(log_dir.iterdir()) == []
        assert open_fds() == before

    def test_a_cap_where_no_part_of_a_file_can_be_freed_is_refused_and_leaves_nothing(
        self, log_dir, open_fds, monkeypatch
    ):
        before = open_fds()

        def refuse(_fd, _end):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(holes, "punch", refuse)
        with pytest.raises(FailedPrecondition, match=rf"below a cap in {log_dir}: the file system"):
            output.Log.create(log_dir, JOB, split_stderr=True, capped=True)
        assert list(log_dir.iterdir()) == []
        assert open_fds() == before
        output.Log.create(log_dir, JOB).close()

    def test_only_the_owner_may_look_at_a_job(self, log_dir):
        with output.Log.create(log_dir, JOB):
            assert mode(log_dir / JOB) == 0o700
            assert mode(log_dir / JOB / "output") == 0o600

    def test_the_output_is_opened_for_appending_only(self, log_dir):
        with output.Log.create(log_dir, JOB) as log:
            flags = fcntl.fcntl(log.fd, fcntl.F_GETFL)
            assert flags & os.O_APPEND
            assert flags & os.O_ACCMODE == os.O_WRONLY

    def test_no_descriptor_is_inherited(self, log_dir):
        with output.Log.create(log_dir, JOB) as log:
            assert not os.get_inheritable(log.fd)
            assert not os.get_inheritable(log.dir_fd)

    def test_a_record_can_be_put_beside_the_output(self, log_dir):
        with output.Log.create(log_dir, JOB) as log:
            os.close(os.open("exit.json", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=log.dir_fd))
        assert (log_dir / JOB / "exit.json").exists()

    def test_closing_twice_closes_no_stranger(self, log_dir):
        log = output.Log.create(log_dir, JOB)
        log.close()
        strangers = [os.open("/", os.O_PATH) for _ in range(2)]
        log.close()
        for fd in strangers:
            os.close(fd)

    @pytest.mark.parametrize("job_id", NOT_IDS)
    def test_what_is_not_a_uuid_becomes_no_path(self, log_dir, job_id):
        with pytest.raises(InvalidArgument, match="job_id"):
            output.Log.create(log_dir, job_id)
        assert not list(log_dir.iterdir())

    def test_an_existing_directory_is_left_as_it_is(self, log_dir):
        (log_dir / JOB).mkdir()
        (log_dir / JOB / "output").write_text("mine")
        with pytest.raises(FailedPrecondition, match=JOB):
            output.Log.create(log_dir, JOB)
        assert (log_dir / JOB / "output").read_text() == "mine"

    def test_a_link_in_the_jobs_place_is_not_followed(self, log_dir, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (log_dir / JOB).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FailedPrecondition, match=JOB):
            output.Log.create(log_dir, JOB)
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_the_log_directory_must_not_be_a_link(self, log_dir, tmp_path):
        (tmp_path / "link").symlink_to(log_dir)
        with pytest.raises(ConfigError, match=r"link.*symbolic link"):
            output.Log.create(tmp_path / "link", JOB)
        assert not list(log_dir.iterdir())

    def test_a_missing_log_directory_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"missing: it does not exist"):
            output.Log.create(tmp_path / "missing", JOB)

    @pytest.mark.parametrize("free", range(3))
    def test_running_out_of_descriptors_leaves_nothing_behind(self, log_dir, open_fds, free):
        before = open_fds()
        with free_descriptors(free), pytest.raises(ResourceExhausted, match="descriptor"):
            output.Log.create(log_dir, JOB)
        assert open_fds() == before
        assert not list(log_dir.iterdir())


class TestPrepare:
    def test_a_new_log_directory_is_the_owners(self, tmp_path):
        output.prepare(tmp_path / "var" / "log")
        assert mode(tmp_path / "var" / "log") == 0o700

    def test_an_existing_directory_keeps_its_mode(self, tmp_path):
        tmp_path.chmod(0o750)
        output.prepare(tmp_path)
        assert mode(tmp_path) == 0o750

    def test_a_link_is_refused(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match=r"link.*symbolic link"):
            output.prepare(tmp_path / "link")

    @pytest.mark.parametrize("path", ["file", "file/below"])
    def test_a_file_is_refused(self, tmp_path, path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=path):
            output.prepare(tmp_path / path)

    def test_a_directory_that_everybody_may_write_to_is_refused(self, tmp_path):
        tmp_path.chmod(0o1777)
        with pytest.raises(ConfigError, match="chmod o-w"):
            output.prepare(tmp_path)

    def test_a_directory_that_we_may_not_write_to_is_refused(self):
        directory = Path(tempfile.mkdtemp(prefix="jobworker-test-"))
        directory.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:  # to whom nothing is forbidden
                os.seteuid(65534)
            with pytest.raises(ConfigError, match=f"{directory}.*permission denied"):
                output.prepare(directory)
        finally:
            os.seteuid(user)
            directory.rmdir()


class TestOpenForReading:
    @pytest.fixture
    def job_dir(self, log_dir: Path) -> Path:
        with output.Log.create(log_dir, JOB) as log:
            os.write(log.fd, b"hello")
        return log_dir / JOB

    @pytest.mark.usefixtures("job_dir")
    def test_reads_what_was_written(self, log_dir):
        fd = output.open_for_reading(log_dir, JOB)
        assert os.read(fd, 100) == b"hello"
        os.close(fd)

    @pytest.mark.usefixtures("job_dir")
    def test_the_size_is_in_bytes(self, log_dir):
        assert output.size(log_dir, JOB) == 5

    @pytest.mark.parametrize("job_id", NOT_IDS)
    @pytest.mark.parametrize("function", [output.open_for_reading, output.size])
    def test_what_is_not_a_uuid_is_refused(self, log_dir, function, job_id):
        with pytest.raises(InvalidArgument, match="job_id"):
            function(log_dir, job_id)

    @pytest.mark.parametrize("function", [output.open_for_reading, output.size])
    def test_a_missing_job_is_named(self, log_dir, function):
        with pytest.raises(FailedPrecondition, match=f"{JOB}.*does not exist"):
            function(log_dir, JOB)

    def test_a_link_in_place_of_the_output_is_not_followed(self, log_dir, job_dir, tmp_path):
        (tmp_path / "secret").write_text("secret")
        (job_dir / "output").unlink()
        (job_dir / "output").symlink_to(tmp_path / "secret")
        with pytest.raises(FailedPrecondition, match="symbolic link"):
            output.open_for_reading(log_dir, JOB)
        assert output.size(log_dir, JOB) != len("secret")

    def test_a_link_in_place_of_the_job_is_not_followed(self, log_dir, job_dir):
        other = str(uuid.uuid4())
        (log_dir / other).symlink_to(job_dir)
        with pytest.raises(FailedPrecondition, match="symbolic link"):
            output.open_for_reading(log_dir, other)

    def test_a_fifo_in_place_of_the_output_hangs_nobody(self, log_dir, job_dir, open_fds):
        (job_dir / "output").unlink()
        os.mkfifo(job_dir / "output")
        before = open_fds()
        with pytest.raises(FailedPrecondition, match="not a regular file"):
            output.open_for_reading(log_dir, JOB)
        assert open_fds() == before

    @pytest.mark.usefixtures("job_dir")
    @pytest.mark.parametrize("free", range(3))
    def test_running_out_of_descriptors_is_said(self, log_dir, open_fds, free):
        before = open_fds()
        with free_descriptors(free), pytest.raises(ResourceExhausted, match="descriptor"):
            output.open_for_reading(log_dir, JOB)
        assert open_fds() == before


class TestOpenDirectory:
    def test_leads_to_what_is_beside_the_output(self, log_dir):
        with output.Log.create(log_dir, JOB) as log:
            fd = output.open_directory(log_dir, JOB)
            assert fd is not None
            assert os.path.samestat(os.fstat(fd), os.fstat(log.dir_fd))
            assert not os.get_inheritable(fd)
            os.close(fd)

    def test_a_job_without_a_directory_has_none(self, log_dir):
        assert output.open_directory(log_dir, JOB) is None

    def test_a_link_in_place_of_the_job_is_not_followed(self, log_dir, tmp_path):
        (log_dir / JOB).symlink_to(tmp_path)
        with pytest.raises(FailedPrecondition, match=f"open .*{JOB}: .*symbolic link"):
            output.open_directory(log_dir, JOB)

    def test_a_missing_log_directory_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"missing: it does not exist"):
            output.open_directory(tmp_path / "missing", JOB)

    @pytest.mark.parametrize("job_id", NOT_IDS)
    def test_what_is_not_a_uuid_is_refused(self, log_dir, job_id):
        with pytest.raises(InvalidArgument, match="job_id"):
            output.open_directory(log_dir, job_id)

    @pytest.mark.parametrize("free", range(2))
    def test_running_out_of_descriptors_is_said(self, log_dir, open_fds, free):
        output.Log.create(log_dir, JOB).close()
        before = open_fds()
        with free_descriptors(free), pytest.raises(ResourceExhausted, match="descriptor"):
            output.open_directory(log_dir, JOB)
        assert open_fds() == before


class TestRemove:
    @pytest.fixture
    def job_dir(self, log_dir: Path) -> Path:
        output.Log.create(log_dir, JOB).close()
        return log_dir / JOB

    def test_removes_all_that_jobworker_puts_there(self, log_dir, job_dir):
        (job_dir / "exit.json").touch()
        (job_dir / ".exit.json.new").touch()
        output.remove(log_dir, JOB)
        assert not list(log_dir.iterdir())

    def test_what_is_missing_is_fine(self, log_dir, job_dir):
        (job_dir / "output").unlink()
        output.remove(log_dir, JOB)
        output.remove(log_dir, JOB)
        assert not list(log_dir.iterdir())

    @pytest.fixture
    def end_is_written(self, monkeypatch, job_dir) -> list[str]:
        """Write the next of these files whenever the directory is about to be removed."""
        names: list[str] = []

        def rmdir(path, *, dir_fd, remove=os.rmdir):
            if names:
                (job_dir / names.pop()).touch()
            remove(path, dir_fd=dir_fd)

        monkeypatch.setattr(os, "rmdir", rmdir)
        return names

    def test_an_end_that_is_written_meanwhile_is_removed_too(self, log_dir, end_is_written):
        end_is_written += ["exit.json", ".exit.json.new"]
        output.remove(log_dir, JOB)
        assert not list(log_dir.iterdir())

    def test_what_is_written_again_and_again_is_not_called_foreign(self, log_dir, end_is_written):
        end_is_written += ["exit.json"] * 1000
        with pytest.raises(FailedPrecondition, match="not empty"):
            output.remove(log_dir, JOB)
        assert len(end_is_written) > 900

    def test_what_is_foreign_is_named_alone(self, log_dir, end_is_written, job_dir):
        (job_dir / "core").touch()
        end_is_written += ["exit.json"]
        with pytest.raises(FailedPrecondition, match=r"\(core\); remove it by hand"):
            output.remove(log_dir, JOB)

    def test_keeps_and_names_what_jobworker_did_not_put_there(self, log_dir, job_dir):
        (job_dir / "core").mkdir()
        (job_dir / "core" / "1").touch()
        with pytest.raises(FailedPrecondition, match=r"core.*by hand"):
            output.remove(log_dir, JOB)
        assert (job_dir / "core" / "1").exists()

    def test_a_directory_in_place_of_the_output_is_kept(self, log_dir, job_dir):
        (job_dir / "output").unlink()
        (job_dir / "output").mkdir()
        with pytest.raises(FailedPrecondition, match="output"):
            output.remove(log_dir, JOB)
        assert (job_dir / "output").exists()

    def test_a_link_in_place_of_the_job_is_not_followed(self, log_dir, job_dir):
        other = str(uuid.uuid4())
        (log_dir / other).symlink_to(job_dir)
        with pytest.raises(FailedPrecondition, match=other):
            output.remove(log_dir, other)
        assert (job_dir / "output").exists()

    def test_a_link_in_place_of_the_output_loses_the_link_only(self, log_dir, job_dir, tmp_path):
        (tmp_path / "mine").touch()
        (job_dir / "output").unlink()
        (job_dir / "output").symlink_to(tmp_path / "mine")
        output.remove(log_dir, JOB)
        assert (tmp_path / "mine").exists()
        assert not job_dir.exists()

    @pytest.mark.parametrize("job_id", NOT_IDS)
    def test_what_is_not_a_uuid_is_refused(self, log_dir, job_dir, job_id):
        with pytest.raises(InvalidArgument, match="job_id"):
            output.remove(log_dir, job_id)
        assert (job_dir / "output").exists()

    async def test_who_is_reading_reads_to_the_end(self, log_dir, job_dir, collect):
        (job_dir / "output").write_bytes(b"hello")
        chunks = output.read_to(output.open_for_reading(log_dir, JOB))
        output.remove(log_dir, JOB)
        assert await collect(chunks) == b"hello"
