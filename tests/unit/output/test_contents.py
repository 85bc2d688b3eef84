import errno
import os
import uuid

import pytest

from jobworker.errors import FailedPrecondition
from jobworker.output import Log, check_removable, disk_usage, remove

JOB = str(uuid.UUID(int=5))


@pytest.fixture
def log_dir(tmp_path):
    with Log.create(tmp_path, JOB):
        yield tmp_path


def test_what_jobworker_has_put_there_may_be_removed(log_dir):
    (log_dir / JOB / "exit.json").write_text("{}")
    check_removable(log_dir, JOB)
    assert (log_dir / JOB / "output").exists()


def test_what_is_gone_already_may_be_removed(tmp_path):
    check_removable(tmp_path, JOB)


def test_what_a_job_has_put_there_is_named_and_nothing_is_touched(log_dir):
    (log_dir / JOB / "core").touch()
    with pytest.raises(FailedPrecondition, match=rf"{JOB} holds what jobworker did not .*\(core\)"):
        check_removable(log_dir, JOB)
    assert {path.name for path in (log_dir / JOB).iterdir()} == {"core", "output"}


def test_a_directory_in_the_place_of_a_file_is_not_ours(log_dir):
    (log_dir / JOB / "exit.json").mkdir()
    with pytest.raises(FailedPrecondition, match="exit"):
        check_removable(log_dir, JOB)


def test_many_foreign_files_are_not_all_named(log_dir):
    for number in range(1000):
        (log_dir / JOB / f"f{number:03}").touch()
    with pytest.raises(FailedPrecondition, match=r"\(f000, f001, f002 and 997 more\)"):
        check_removable(log_dir, JOB)


def test_a_name_that_is_no_text_can_be_sent(log_dir):
    with open(os.path.join(os.fsencode(log_dir / JOB), b"\xff"), "wb"):  # noqa: PTH118, PTH123
        pass
    with pytest.raises(FailedPrecondition, match=r"\(\\xff\)") as caught:
        check_removable(log_dir, JOB)
    str(caught.value).encode()
    with pytest.raises(FailedPrecondition) as caught:
        remove(log_dir, JOB)
    str(caught.value).encode()


def test_something_else_in_the_place_of_the_directory_is_said(tmp_path):
    (tmp_path / JOB).symlink_to("elsewhere")
    with pytest.raises(FailedPrecondition):
        check_removable(tmp_path, JOB)


def test_the_disk_that_a_job_takes_is_what_the_file_system_has_given(log_dir):
    before = disk_usage(log_dir, JOB)
    with (log_dir / JOB / "output").open("r+b") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        taken = (os.fstat(file.fileno()).st_blocks) * 512
        assert disk_usage(log_dir, JOB) - before == taken
        try:
            os.ftruncate(file.fileno(), 1 << 40)
        except OSError as error:
            assert error.errno == errno.EFBIG  # noqa: PT017 - a file system of smaller files
        assert disk_usage(log_dir, JOB) - before < 1 << 30


def test_a_directory_that_is_gone_takes_nothing(tmp_path):
    assert disk_usage(tmp_path, JOB) == 0


def test_a_link_that_leads_nowhere_takes_only_its_own(log_dir):
    (log_dir / JOB / "link").symlink_to("/nonexistent")
    disk_usage(log_dir, JOB)
