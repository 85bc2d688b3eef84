import errno
import os
import pwd
import resource

import pytest

from jobworker.errors import UserNotFound
from jobworker.job.accounts import look_up


def test_no_name_means_this_process_own_user():
    assert look_up("").uid == os.geteuid()


def test_a_name_and_its_number_are_the_same_account():
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.geteuid())
    found = look_up(other.pw_name)
    assert found == look_up(str(other.pw_uid))
    assert found.groups is not None
    assert found.gid in found.groups


def test_the_groups_of_ones_own_account_are_left_as_they_are():
    assert look_up(str(os.geteuid())).groups is None


@pytest.mark.parametrize("user", ["no-such-user", "4000000000", "99999999999999999999", "-1", "٣"])
def test_an_unknown_user_is_named(user):
    with pytest.raises(UserNotFound, match=user):
        look_up(user)


def test_a_user_database_that_cannot_be_opened_is_no_unknown_user():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            look_up("nobody")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_environment_is_minimal_and_the_users_own():
    assert look_up("nobody").environment() == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": pwd.getpwnam("nobody").pw_dir,
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SHELL": pwd.getpwnam("nobody").pw_shell,
        "LANG": "C.UTF-8",
    }
