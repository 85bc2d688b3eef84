import errno
import os
import pwd

import pytest

from jobworker.errors import UserNotFound
from jobworker.job import accounts
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


def test_a_user_database_that_cannot_be_opened_is_no_unknown_user(monkeypatch):
    """Python's pwd says KeyError, whatever getpwnam_r(3) said."""

    def refuse(*_arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(accounts.pwd, "getpwnam", {}.__getitem__)
    monkeypatch.setattr(accounts.os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        look_up("nobody")


def test_the_environment_is_minimal_and_the_users_own():
    assert look_up("nobody").environment() == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": pwd.getpwnam("nobody").pw_dir,
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SHELL": pwd.getpwnam("nobody").pw_shell,
        "LANG": "C.UTF-8",
    }
