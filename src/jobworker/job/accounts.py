"""The host's user database: which ids, groups and home a job's user has (getpwnam(3))."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from jobworker.errors import UserNotFound
from jobworker.job.spec import DEFAULT_PATH


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the host.

    `groups` are all groups, the primary one included; None for the user that this process runs as,
    whose groups its children have anyway.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] | None
    home: str
    shell: str

    def environment(self) -> dict[str, str]:
        """Return the minimal environment that a job of this user begins with."""
        return {
            "PATH": DEFAULT_PATH,
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "LANG": "C.UTF-8",
        }


def look_up(user: str) -> Account:
    """Return the account of a user's name or number; an empty `user` is this process's own.

    Raises UserNotFound, or OSError if no descriptor is left to look with. May block on the network
    where the user database does (nsswitch.conf(5)).
    """
    try:
        entry = _entry(user)
    except (KeyError, OverflowError):
        # Python says the same of a database that could not be opened.
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        raise UserNotFound(
            f"cannot run the job as {user or os.geteuid()}: the host has no such user"
        ) from None
    own = entry.pw_uid == os.geteuid()
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=None if own else tuple(sorted(os.getgrouplist(entry.pw_name, entry.pw_gid))),
        home=entry.pw_dir or "/",
        shell=entry.pw_shell or "/bin/sh",
    )


def _entry(user: str) -> pwd.struct_passwd:
    if not user:
        return pwd.getpwuid(os.geteuid())
    if user.isascii() and user.isdigit():
        return pwd.getpwuid(int(user))
    return pwd.getpwnam(user)
