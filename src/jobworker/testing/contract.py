"""What a tree of cgroups does, as checks for the real kernel and for its stand-in alike.

Each check gets a `Site` with a cgroup that is empty, and raises AssertionError. Those of
`CORE_CHECKS` need no controller; those of `LIMIT_CHECKS` need cpu, memory, io and pids enabled for
the cgroups below the site's root.
"""

from __future__ import annotations

import errno
import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.cgroups.files import Files

_NO_PID = 4 * 1024 * 1024 + 1
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where a check works: cgroup files, a cgroup that exists, and a source of live processes."""

    files: Files
    root: str
    spawn: Callable[[], int]

    def new(self, name: str) -> str:
        """Create a cgroup below the root and return its path."""
        path = f"{self.root}/{name}"
        self.files.make_cgroup(path)
        return path

    def place(self, cgroup: str) -> int:
        """Move a new process into a cgroup and return its pid."""
        pid = self.spawn()
        self.files.write(f"{cgroup}/cgroup.procs", str(pid))
        return pid


def expect(condition: object, message: str) -> None:
    """Raise AssertionError if a check has failed."""
    if not condition:
        raise AssertionError(message)


def expect_refusal(number: int, action: Callable[..., object], *arguments: object) -> None:
    """Raise AssertionError unless an action fails with one errno."""
    try:
        action(*arguments)
    except OSError as error:
        got = errno.errorcode.get(error.errno or 0, str(error))
        expect(error.errno == number, f"{arguments}: {got}, not {errno.errorcode[number]}")
    else:
        raise AssertionError(f"{arguments}: succeeded instead of {errno.errorcode[number]}")


def expect_soon(condition: Callable[[], bool], message: str) -> None:
    """Raise AssertionError unless a condition that the kernel brings about comes true."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        expect(time.monotonic() < deadline, message)
        select.select([], [], [], 0.005)


def new_cgroup_has_its_files(site: Site) -> None:
    """Mkdir fills a cgroup with files."""
    path = site.new("a")
    for name in ("controllers", "subtree_control", "procs", "events", "type", "freeze", "kill"):
        expect(site.files.exists(f"{path}/cgroup.{name}"), f"no cgroup.{name}")
    expect("user_usec 0\n" in site.files.read(f"{path}/cpu.stat"), "no cpu.stat")


def unknown_file_is_not_created(site: Site) -> None:
    """A name that the kernel does not know fails, for reading and for writing."""
    path = f"{site.new('a')}/memory.nonsense"
    expect_refusal(errno.ENOENT, site.files.write, path, "1")
    expect_refusal(errno.ENOENT, site.files.read, path)
    expect(not site.files.exists(path), "the file was created")


def cgroup_needs_a_free_name_in_a_cgroup(site: Site) -> None:
    """Mkdir fails for a name that is taken and below what is not there."""
    path = site.new("a")
    expect_refusal(errno.EEXIST, site.files.make_cgroup, path)
    expect_refusal(errno.ENOENT, site.files.make_cgroup, f"{site.root}/b/c")


def remove_takes_the_files_along(site: Site) -> None:
    """Rmdir needs no empty directory, only an empty cgroup."""
    path = site.new("a")
    site.files.remove_cgroup(path)
    expect(not site.files.exists(path), "it is still there")
    expect_refusal(errno.ENOENT, site.files.remove_cgroup, path)


def remove_refuses_a_cgroup_with_another_in_it(site: Site) -> None:
    """Rmdir fails while there is a nested cgroup."""
    path = site.new("a")
    site.new("a/b")
    expect(site.files.children(path) == ["b"], "the nested cgroup is not listed")
    expect_refusal(errno.EBUSY, site.files.remove_cgroup, path)


def remove_refuses_a_cgroup_with_a_process(site: Site) -> None:
    """Rmdir fails while there is a process."""
    path = site.new("a")
    site.place(path)
    expect_refusal(errno.EBUSY, site.files.remove_cgroup, path)


def nesting_can_be_bounded(site: Site) -> None:
    """Mkdir fails with EAGAIN at cgroup.max.depth and at cgroup.max.descendants."""
    deep, wide = site.new("deep"), site.new("wide")
    site.files.write(f"{deep}/cgroup.max.depth", "1")
    site.new("deep/a")
    expect_refusal(errno.EAGAIN, site.files.make_cgroup, f"{deep}/a/b")
    site.files.write(f"{wide}/cgroup.max.descendants", "2")
    site.new("wide/a")
    site.new("wide/a/b")
    expect_refusal(errno.EAGAIN, site.files.make_cgroup, f"{wide}/c")


def walk_comes_to_each_after_those_below_it(site: Site) -> None:
    """A walk comes to nested cgroups first, reads their files and may remove them."""
    path = site.new("a")
    for name in ("a/b", "a/b/c", "a/d"):
        site.new(name)
    pid = site.place(f"{path}/b/c")
    found = [(nested.path, nested.read("cgroup.procs").split()) for nested in site.files.walk(path)]
    expect(found[-1] == (path, []), f"{found}")
    inner = found.index((f"{path}/b/c", [str(pid)]))
    expect(inner < found.index((f"{path}/b", [])), f"{found}")
    expect(len(found) == 4, f"{found}")
    for nested in site.files.walk(path):
        if nested.path == f"{path}/d":
            nested.remove()
        elif nested.path == f"{path}/b":
            expect(nested.children() == ["c"], "not listed")
            expect_refusal(errno.EBUSY, nested.remove)
    expect(not site.files.exists(f"{path}/d"), "it is still there")
    expect(list(site.files.walk(f"{path}/d")) == [], "nothing to walk")


def process_is_in_one_cgroup_at_a_time(site: Site) -> None:
    """A write to cgroup.procs moves."""
    first, second = site.new("a"), site.new("b")
    pid = site.place(first)
    expect(site.files.read(f"{first}/cgroup.procs") == f"{pid}\n", "it did not come")
    site.files.write(f"{second}/cgroup.procs", str(pid))
    expect(site.files.read(f"{first}/cgroup.procs") == "", "it did not leave")
    expect(site.files.read(f"{second}/cgroup.procs") == f"{pid}\n", "it did not arrive")


def only_live_processes_can_be_placed(site: Site) -> None:
    """A pid that nobody has, and no pid at all."""
    path = f"{site.new('a')}/cgroup.procs"
    expect_refusal(errno.ESRCH, site.files.write, path, str(_NO_PID))
    expect_refusal(errno.EINVAL, site.files.write, path, "nonsense")


def nested_process_populates_all_above(site: Site) -> None:
    """`populated` speaks for the whole subtree."""
    path = site.new("a")
    expect("populated 0\n" in site.files.read(f"{path}/cgroup.events"), "populated from the start")
    site.place(site.new("a/b"))
    expect("populated 1\n" in site.files.read(f"{path}/cgroup.events"), "not populated")


def kill_reaches_nested_cgroups(site: Site) -> None:
    """cgroup.kill empties the subtree, and takes nothing but 1."""
    path = site.new("a")
    site.place(path)
    site.place(site.new("a/b"))
    expect_refusal(errno.ERANGE, site.files.write, f"{path}/cgroup.kill", "0")
    site.files.write(f"{path}/cgroup.kill", "1")
    events = f"{path}/cgroup.events"
    expect_soon(lambda: "populated 0\n" in site.files.read(events), "something survived")


def files_are_for_reading_or_for_writing(site: Site) -> None:
    """A request for which the kernel has no handler, from root, whom no mode stops."""
    path = site.new("a")
    expect_refusal(errno.EINVAL, site.files.read, f"{path}/cgroup.kill")
    expect_refusal(errno.EINVAL, site.files.write, f"{path}/cgroup.events", "populated 1")


def freeze_takes_zero_and_one(site: Site) -> None:
    """cgroup.freeze."""
    path = f"{site.new('a')}/cgroup.freeze"
    expect_refusal(errno.ERANGE, site.files.write, path, "2")
    expect_refusal(errno.EINVAL, site.files.write, path, "x")
    site.files.write(path, "1")
    expect(site.files.read(path) == "1\n", "not frozen")
    site.files.write(path, "0")


def controllers_must_be_known_and_offered(site: Site) -> None:
    """A write to cgroup.subtree_control names controllers that cgroup.controllers lists."""
    path = site.new("a")
    expect(site.files.read(f"{path}/cgroup.subtree_control").split() == [], "some are enabled")
    expect_refusal(errno.EINVAL, site.files.write, f"{path}/cgroup.subtree_control", "+nonsense")
    nested = site.new("a/b")
    expect_refusal(errno.ENOENT, site.files.write, f"{nested}/cgroup.subtree_control", "+memory")


def events_wake_a_poll_until_they_are_read(site: Site) -> None:
    """An open cgroup.events reports POLLPRI: at first, and after each change."""
    path = site.new("a")
    fd = site.files.open(f"{path}/cgroup.events")
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    try:
        expect(poll.poll(0), "silent before the first read")
        site.files.read_again(fd)
        expect(not poll.poll(0), "awake although nothing has changed")
        site.place(path)
        expect(poll.poll(_PATIENCE * 1000), "silent about a change")
        expect(poll.poll(0), "asleep before the change was read")
        expect("populated 1\n" in site.files.read_again(fd), "the change is not to be read")
        expect(not poll.poll(0), "awake after the change was read")
    finally:
        os.close(fd)


def open_file_of_a_removed_cgroup_says_so(site: Site) -> None:
    """A read through a descriptor that outlived its cgroup."""
    path = site.new("a")
    fd = site.files.open(f"{path}/cgroup.events")
    try:
        site.files.remove_cgroup(path)
        expect_refusal(errno.ENODEV, site.files.read_again, fd)
    finally:
        os.close(fd)


def memory_is_rounded_to_pages(site: Site) -> None:
    """Sizes lose what is not a whole page, and end at "max"."""
    path = f"{site.new('a')}/memory.max"
    page = os.sysconf("SC_PAGE_SIZE")
    expect(site.files.read(path) == "max\n", "not max from the start")
    for written, kept in (
        (str(1000 * page + 1), str(1000 * page)),
        ("1G", str(2**30)),
        (str(2**63), "max"),
    ):
        site.files.write(path, written)
        expect(site.files.read(path) == f"{kept}\n", f"{written}: {site.files.read(path)!r}")
    expect_refusal(errno.EINVAL, site.files.write, path, "much")


def cpu_settings_have_their_ranges(site: Site) -> None:
    """cpu.weight, cpu.max, and cpu.max.burst, which stays below the quota."""
    path = site.new("a")
    expect_refusal(errno.ERANGE, site.files.write, f"{path}/cpu.weight", "10001")
    for text in ("999 100000", "1000 999", "1000 1000001", "x"):
        expect_refusal(errno.EINVAL, site.files.write, f"{path}/cpu.max", text)
    site.files.write(f"{path}/cpu.max", "50000 100000")
    expect(site.files.read(f"{path}/cpu.max") == "50000 100000\n", "cpu.max")
    site.files.write(f"{path}/cpu.max.burst", "50000")
    expect(site.files.read(f"{path}/cpu.max.burst") == "50000\n", "cpu.max.burst")


def io_weight_has_a_range(site: Site) -> None:
    """io.weight."""
    path = f"{site.new('a')}/io.weight"
    site.files.write(path, "default 10000")
    expect(site.files.read(path) == "default 10000\n", "io.weight")
    expect_refusal(errno.EINVAL, site.files.write, path, "default 10001")


def io_max_needs_a_device(site: Site) -> None:
    """io.max of a device that is not there, and of none."""
    path = f"{site.new('a')}/io.max"
    expect(site.files.read(path) == "", "io.max is not empty from the start")
    expect_refusal(errno.ENODEV, site.files.write, path, "4095:1 rbps=1000000")
    expect_refusal(errno.EINVAL, site.files.write, path, "rbps=1000000")


def pids_have_an_end(site: Site) -> None:
    """pids.max."""
    path = f"{site.new('a')}/pids.max"
    site.files.write(path, "100")
    expect(site.files.read(path) == "100\n", "pids.max")
    site.files.write(path, "4194304")
    for text in ("-1", "4194306", "many"):
        expect_refusal(errno.EINVAL, site.files.write, path, text)


def processes_keep_controllers_out(site: Site) -> None:
    """A cgroup with processes of its own cannot pass controllers on, nor the reverse."""
    path = site.new("a")
    pid = site.place(path)
    expect_refusal(errno.EBUSY, site.files.write, f"{path}/cgroup.subtree_control", "+memory")
    site.files.write(f"{site.new('b')}/cgroup.procs", str(pid))
    site.files.write(f"{path}/cgroup.subtree_control", "+memory")
    expect_refusal(errno.EBUSY, site.files.write, f"{path}/cgroup.procs", str(pid))


CORE_CHECKS: Final = (
    new_cgroup_has_its_files,
    unknown_file_is_not_created,
    cgroup_needs_a_free_name_in_a_cgroup,
    remove_takes_the_files_along,
    remove_refuses_a_cgroup_with_another_in_it,
    remove_refuses_a_cgroup_with_a_process,
    nesting_can_be_bounded,
    walk_comes_to_each_after_those_below_it,
    process_is_in_one_cgroup_at_a_time,
    only_live_processes_can_be_placed,
    nested_process_populates_all_above,
    kill_reaches_nested_cgroups,
    files_are_for_reading_or_for_writing,
    freeze_takes_zero_and_one,
    controllers_must_be_known_and_offered,
    events_wake_a_poll_until_they_are_read,
    open_file_of_a_removed_cgroup_says_so,
)

LIMIT_CHECKS: Final = (
    memory_is_rounded_to_pages,
    cpu_settings_have_their_ranges,
    io_weight_has_a_range,
    io_max_needs_a_device,
    pids_have_an_end,
    processes_keep_controllers_out,
)
