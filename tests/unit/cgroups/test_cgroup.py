"""One cgroup, in the fake tree."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from itertools import count
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups.cgroup import Cgroup
from jobworker.cgroups.limits import CpuMax, DeviceLimit, Limits
from jobworker.testing import FakeCgroupTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATH = "/cgroup2/job"
SECONDS = 10


@pytest.fixture
def tree() -> FakeCgroupTree:
    tree = FakeCgroupTree(mounted_at="/cgroup2")
    tree.write("/cgroup2/cgroup.subtree_control", "+cpu +memory +io +pids")
    tree.mkdir(PATH)
    return tree


@pytest.fixture
def cgroup(tree: FakeCgroupTree) -> Cgroup:
    return Cgroup(PATH, tree.files)


@pytest.fixture
def spawn() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started = []

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "1000"])
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def nested(tree: FakeCgroupTree, name: str, *pids: int) -> None:
    tree.mkdir(f"{PATH}/{name}")
    for pid in pids:
        tree.write(f"{PATH}/{name}/cgroup.procs", str(pid))


def test_id_is_the_last_part_of_the_path(cgroup: Cgroup):
    assert cgroup.id == "job"
    assert cgroup.path == PATH


def test_cgroups_of_one_path_are_equal(cgroup: Cgroup):
    assert cgroup == Cgroup(PATH)
    assert hash(cgroup) == hash(Cgroup(PATH))
    assert cgroup != Cgroup("/cgroup2/other")


def test_processes_are_those_of_nested_cgroups_too(tree: FakeCgroupTree, cgroup: Cgroup):
    cgroup.place(30)
    nested(tree, "a", 10)
    nested(tree, "a/b", 20)

    assert cgroup.processes() == [10, 20, 30]
    assert cgroup.populated()


def test_processes_outside_the_pid_namespace_are_left_out(tree: FakeCgroupTree, cgroup: Cgroup):
    nested(tree, "a", 0, 10)

    assert cgroup.processes() == [10]


def test_processes_of_threaded_cgroups_are_listed_elsewhere(tree: FakeCgroupTree, cgroup: Cgroup):
    cgroup.place(30)
    nested(tree, "threaded")
    tree.fail("*/threaded/cgroup.procs", errno.EOPNOTSUPP, "read")

    assert cgroup.processes() == [30]


def test_missing_cgroup_is_an_empty_one(tree: FakeCgroupTree):
    cgroup = Cgroup("/cgroup2/gone", tree.files)

    assert not cgroup.populated()
    assert cgroup.processes() == []
    assert cgroup.usage() == {}
    assert cgroup.limits() == Limits()
    assert cgroup.signal(signal.SIGTERM) == 0
    cgroup.kill()
    cgroup.remove()


def test_other_errors_are_not_taken_for_a_missing_cgroup(tree: FakeCgroupTree, cgroup: Cgroup):
    tree.fail("*", errno.EIO, "read")

    for attempt in (cgroup.populated, cgroup.processes, cgroup.usage, cgroup.limits):
        with pytest.raises(OSError, match="Input/output"):
            attempt()


def test_kill_empties_nested_cgroups(tree: FakeCgroupTree, cgroup: Cgroup):
    cgroup.place(30)
    nested(tree, "a", 10)

    cgroup.kill()

    assert not cgroup.populated()
    assert (f"{PATH}/cgroup.kill", "1") in tree.writes


def test_kill_that_is_refused_is_no_success(tree: FakeCgroupTree, cgroup: Cgroup):
    tree.fail("*/cgroup.kill", errno.EACCES)

    with pytest.raises(PermissionError):
        cgroup.kill()


def test_kill_without_cgroup_kill_freezes_and_kills_each(
    spawn: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
):
    # The tree does not see real processes end, so there is nothing to wait for.
    monkeypatch.setattr("jobworker.cgroups.cgroup.KILL_PATIENCE", 0)
    tree = FakeCgroupTree(mounted_at="/cgroup2", without=frozenset({"cgroup.kill"}))
    tree.mkdir(PATH)
    cgroup, process, other = Cgroup(PATH, tree.files), spawn(), spawn()
    nested(tree, "a", process.pid)
    tree.mkdir("/cgroup2/other")
    tree.write("/cgroup2/other/cgroup.procs", str(other.pid))

    cgroup.kill()

    assert process.wait(SECONDS) == -signal.SIGKILL
    assert (f"{PATH}/cgroup.freeze", "1") in tree.writes
    assert other.poll() is None


def test_kill_without_cgroup_kill_takes_the_child_of_a_fork_under_way(
    spawn: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
):
    """The child turns up after every member has been killed once."""
    monkeypatch.setattr("jobworker.cgroups.cgroup.KILL_PATIENCE", 60)
    tree = FakeCgroupTree(mounted_at="/cgroup2", without=frozenset({"cgroup.kill"}))
    tree.mkdir(PATH)
    cgroup, parent, child = Cgroup(PATH, tree.files), spawn(), spawn()
    cgroup.place(parent.pid)
    reads = count(1)

    def fork() -> None:
        match next(reads):
            case 3:
                cgroup.place(child.pid)
            case 5:
                tree.exit(parent.pid)
                tree.exit(child.pid)

    tree.answer("*/cgroup.procs", fork)

    cgroup.kill()

    assert parent.wait(SECONDS) == -signal.SIGKILL
    assert child.wait(SECONDS) == -signal.SIGKILL


def test_signal_reaches_members_and_no_one_else(
    tree: FakeCgroupTree, cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    member, deep, other = spawn(), spawn(), spawn()
    cgroup.place(member.pid)
    nested(tree, "a", deep.pid)

    assert cgroup.signal(signal.SIGTERM) == 2

    assert member.wait(SECONDS) == -signal.SIGTERM
    assert deep.wait(SECONDS) == -signal.SIGTERM
    assert other.poll() is None


def test_signal_spares_a_process_that_got_a_members_pid(
    tree: FakeCgroupTree, cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    """The pid is listed first, and is not any more once the pidfd is open."""
    stranger = spawn()
    answers = iter([f"{stranger.pid}\n"])
    tree.answer("*/cgroup.procs", lambda: next(answers, None))

    cgroup.signal(signal.SIGKILL)

    # Had it been sent, it would be the end of the process, and not this one.
    stranger.send_signal(signal.SIGTERM)
    assert stranger.wait(SECONDS) == -signal.SIGTERM


def test_signals_are_sent_in_their_order(
    cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    stopped = spawn()
    stopped.send_signal(signal.SIGSTOP)
    cgroup.place(stopped.pid)

    assert cgroup.signal(signal.SIGTERM, signal.SIGCONT) == 1

    assert stopped.wait(SECONDS) == -signal.SIGTERM


def test_main_process_is_signalled_and_killed_wherever_it_has_gone(
    cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    for end, expected in (
        (lambda main: cgroup.signal(signal.SIGTERM, main=main), signal.SIGTERM),
        (cgroup.kill, signal.SIGKILL),
    ):
        outside = spawn()
        main = os.pidfd_open(outside.pid)
        end(main)
        assert outside.wait(SECONDS) == -expected
        end(main)
        os.close(main)


def test_main_process_that_was_reaped_is_not_counted(
    cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    ended = spawn()
    main = os.pidfd_open(ended.pid)
    ended.kill()
    ended.wait(SECONDS)

    assert cgroup.signal(signal.SIGTERM, main=main) == 0

    os.close(main)


@pytest.fixture
def asked(
    tree: FakeCgroupTree,
    cgroup: Cgroup,
    spawn: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> list[object]:
    """What is done to a frozen cgroup with one process, in its order."""
    cgroup.place(spawn().pid)
    cgroup.freeze(frozen=True)
    steps: list[object] = []
    write = tree.write

    def record(path: str, text: str) -> None:
        steps.append("thaw")
        write(path, text)

    monkeypatch.setattr(signal, "pidfd_send_signal", lambda _fd, number: steps.append(number))
    monkeypatch.setattr(tree, "write", record)
    return steps


def test_who_is_asked_to_end_goes_on_once_it_has_the_signal(asked: list[object], cgroup: Cgroup):
    cgroup.ask_to_end(signal.SIGUSR1)

    assert asked == [signal.SIGUSR1, signal.SIGCONT, "thaw"]
    assert cgroup.events()["frozen"] == 0


@pytest.mark.parametrize(
    "signum", [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT]
)
def test_signal_that_stops_is_not_undone(asked: list[object], cgroup: Cgroup, signum: int):
    cgroup.ask_to_end(signum)

    assert asked == [signum, "thaw"]


def test_who_cannot_be_signalled_is_thawed_all_the_same(
    tree: FakeCgroupTree, asked: list[object], cgroup: Cgroup
):
    tree.fail("*/cgroup.procs", errno.EMFILE, "read")

    with pytest.raises(OSError, match="Too many open files"):
        cgroup.ask_to_end(signal.SIGTERM)

    assert asked == ["thaw"]
    assert cgroup.events()["frozen"] == 0


def test_of_two_failures_the_second_is_a_note(tree: FakeCgroupTree, cgroup: Cgroup):
    tree.fail("*/cgroup.procs", errno.EMFILE, "read")
    tree.fail("*/cgroup.freeze", errno.EIO)

    with pytest.raises(OSError, match="Too many open files") as caught:
        cgroup.ask_to_end(signal.SIGTERM)

    assert "nor could it be thawed" in caught.value.__notes__[0]


def test_who_cannot_be_thawed_has_the_signal(
    tree: FakeCgroupTree, asked: list[object], cgroup: Cgroup
):
    tree.fail("*/cgroup.freeze", errno.EIO)

    with pytest.raises(OSError, match="Input/output"):
        cgroup.ask_to_end(signal.SIGTERM)

    assert asked[0] == signal.SIGTERM


def test_main_process_gets_a_signal_once(
    cgroup: Cgroup,
    spawn: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
):
    inside, other = spawn(), spawn()
    cgroup.place(inside.pid)
    cgroup.place(other.pid)
    main = os.pidfd_open(inside.pid)
    sent = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda _fd, number: sent.append(number))

    assert cgroup.signal(signal.SIGTERM, main=main) == 2

    os.close(main)
    assert sent == [signal.SIGTERM] * 2


def test_signal_passes_over_processes_that_have_ended(
    cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    ended, member = spawn(), spawn()
    ended.kill()
    ended.wait()
    cgroup.place(ended.pid)
    cgroup.place(member.pid)

    cgroup.signal(signal.SIGTERM)

    assert member.wait(SECONDS) == -signal.SIGTERM


def test_signal_reaches_processes_born_meanwhile(
    tree: FakeCgroupTree, cgroup: Cgroup, spawn: Callable[[], subprocess.Popen[bytes]]
):
    parent, child = spawn(), spawn()
    cgroup.place(parent.pid)
    reads = count(1)

    def fork() -> None:
        if next(reads) == 3:
            cgroup.place(child.pid)

    tree.answer("*/cgroup.procs", fork)

    assert cgroup.signal(signal.SIGTERM) == 2

    assert child.wait(SECONDS) == -signal.SIGTERM


def test_signal_ends_although_processes_are_born_for_ever(tree: FakeCgroupTree, cgroup: Cgroup):
    unused_pids = count(2**30)
    tree.answer("*/cgroup.procs", lambda: f"{next(unused_pids)}\n")

    assert cgroup.signal(signal.SIGTERM) > 0


def test_signal_holds_few_descriptors_at_a_time(
    cgroup: Cgroup,
    spawn: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("jobworker.cgroups.cgroup.SIGNAL_BATCH", 8)
    pids = [spawn().pid for _ in range(11)]
    for pid in pids:
        cgroup.place(pid)
    held: set[int] = set()
    most = 0

    def pidfd_open(pid: int) -> int:
        nonlocal most
        fd = real_open(pid)
        held.add(fd)
        most = max(most, len(held))
        return fd

    def close(fd: int) -> None:
        held.discard(fd)
        real_close(fd)

    real_open, real_close = os.pidfd_open, os.close
    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    monkeypatch.setattr(os, "close", close)

    assert cgroup.signal(signal.SIGTERM) == len(pids)

    assert most == 8
    assert held == set()


def test_events_wake_a_poll(cgroup: Cgroup):
    fd = cgroup.open_events()
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        assert not cgroup.populated(fd)
        assert poll.poll(0) == []
        cgroup.place(10)
        assert poll.poll(0)
        assert cgroup.events(fd) == {"populated": 1, "frozen": 0}
        assert poll.poll(0) == []
    finally:
        os.close(fd)


def test_open_events_outlive_their_cgroup(tree: FakeCgroupTree, cgroup: Cgroup):
    fd = cgroup.open_events()
    try:
        tree.rmdir(PATH)
        assert not cgroup.populated(fd)
    finally:
        os.close(fd)


def test_open_gives_a_directory(cgroup: Cgroup):
    fd = cgroup.open()
    try:
        assert os.path.isdir(fd)  # noqa: PTH112 - a descriptor
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_open_needs_a_cgroup(tree: FakeCgroupTree):
    with pytest.raises(FileNotFoundError):
        Cgroup("/cgroup2/gone", tree.files).open()


def test_usage_has_the_keys_of_the_wire_contract(tree: FakeCgroupTree, cgroup: Cgroup):
    some = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 total=1\n"
    for file, content in {
        "cpu.stat": (
            "usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_periods 14\nnr_throttled 15\n"
            "throttled_usec 16\nnr_bursts 17\nburst_usec 18\n"
        ),
        "memory.peak": "8192\n",
        "memory.swap.peak": "4096\n",
        "memory.events": "low 0\nhigh 20\nmax 21\noom 9\noom_kill 4\n",
        "io.stat": "254:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:0 rbytes=10 wbytes=20\n",
        "pids.peak": "6\n",
        "pids.events": "max 22\n",
        "cpu.pressure": some.format(7),
        "memory.pressure": some.format(8),
        "io.pressure": some.format(9),
    }.items():
        tree.set(f"{PATH}/{file}", content)

    assert cgroup.usage() == {
        "cpu_user_us": 2,
        "cpu_system_us": 3,
        "cpu_throttled_periods": 15,
        "cpu_throttled_us": 16,
        "cpu_burst_periods": 17,
        "cpu_burst_us": 18,
        "memory_peak": 8192,
        "memory_swap_peak": 4096,
        "memory_high_events": 20,
        "memory_max_events": 21,
        "io_read_bytes": 11,
        "io_write_bytes": 22,
        "io_read_operations": 3,
        "io_write_operations": 4,
        "oom_kills": 4,
        "pids_peak": 6,
        "pids_max_events": 22,
        "cpu_pressure_us": 7,
        "memory_pressure_us": 8,
        "io_pressure_us": 9,
    }


def test_usage_leaves_out_files_and_lines_that_are_missing():
    tree = FakeCgroupTree((), mounted_at="/cgroup2", without=frozenset({"io.pressure"}))
    tree.mkdir(PATH)
    tree.set(f"{PATH}/cpu.stat", "usage_usec 5\n")
    tree.fail("*/cpu.pressure", errno.EOPNOTSUPP, "read")

    assert Cgroup(PATH, tree.files).usage() == {"memory_pressure_us": 0}


def test_current_has_the_keys_of_the_wire_contract(tree: FakeCgroupTree, cgroup: Cgroup):
    for file, content in {
        "memory.current": "8192\n",
        "memory.swap.current": "4096\n",
        "pids.current": "6\n",
    }.items():
        tree.set(f"{PATH}/{file}", content)

    assert cgroup.current() == {
        "memory_current": 8192,
        "memory_swap_current": 4096,
        "pids_current": 6,
    }


def test_current_leaves_out_what_the_kernel_does_not_have():
    tree = FakeCgroupTree(("pids",), mounted_at="/cgroup2")
    tree.write("/cgroup2/cgroup.subtree_control", "+pids")
    tree.mkdir(PATH)

    assert Cgroup(PATH, tree.files).current() == {"pids_current": 0}


def test_freeze_and_let_go_on(tree: FakeCgroupTree, cgroup: Cgroup):
    cgroup.freeze(frozen=True)
    assert cgroup.events()["frozen"] == 1

    cgroup.freeze(frozen=False)
    assert cgroup.events()["frozen"] == 0


def test_letting_go_on_leaves_a_nested_cgroup_as_whoever_froze_it_wants(
    tree: FakeCgroupTree, cgroup: Cgroup
):
    nested(tree, "a")
    tree.write(f"{PATH}/a/cgroup.freeze", "1")

    cgroup.freeze(frozen=False)

    assert tree.read(f"{PATH}/a/cgroup.freeze") == "1\n"


def test_thaw_reaches_nested_cgroups(tree: FakeCgroupTree, cgroup: Cgroup):
    nested(tree, "a")
    nested(tree, "a/b")
    for name in ("", "/a", "/a/b"):
        tree.write(f"{PATH}{name}/cgroup.freeze", "1")

    cgroup.thaw()

    for name in ("", "/a", "/a/b"):
        assert tree.read(f"{PATH}{name}/cgroup.freeze") == "0\n"


def test_thaw_of_a_cgroup_that_is_gone_does_nothing(tree: FakeCgroupTree):
    Cgroup("/cgroup2/gone", tree.files).thaw()


def test_thaw_that_fails_otherwise_says_so(tree: FakeCgroupTree, cgroup: Cgroup):
    tree.fail("*/cgroup.freeze", errno.EIO)

    with pytest.raises(OSError, match="Input/output"):
        cgroup.thaw()


def test_limits_are_those_in_force(tree: FakeCgroupTree, cgroup: Cgroup):
    for file, text in {
        "memory.max": "1G",
        "cpu.max": "50000 20000",
        "io.max": "254:0 wbps=1000000",
        "io.weight": "default 200",
        "pids.max": "32",
    }.items():
        tree.write(f"{PATH}/{file}", text)

    assert cgroup.limits() == Limits(
        memory_max=2**30,
        cpu_max=CpuMax(50_000, 20_000),
        io_max_wbps=(DeviceLimit("254:0", 10**6),),
        io_weight=200,
        pids_max=32,
    )


def test_remove_goes_from_the_inside_out(tree: FakeCgroupTree, cgroup: Cgroup):
    for name in ("a", "a/b", "a/b/c", "d"):
        nested(tree, name)

    cgroup.remove()

    assert tree.cgroups() == []


def test_remove_names_the_processes_in_the_way(tree: FakeCgroupTree, cgroup: Cgroup):
    nested(tree, "a", 10, 20)

    with pytest.raises(
        OSError, match=r"still has processes \(10, 20\): '/cgroup2/job/a'"
    ) as caught:
        cgroup.remove()

    assert caught.value.errno == errno.EBUSY


def test_remove_names_only_some_of_many_processes(tree: FakeCgroupTree, cgroup: Cgroup):
    for pid in range(1000, 2000):
        cgroup.place(pid)

    with pytest.raises(OSError, match=r"\(1000, .*1009, …\)"):
        cgroup.remove()


def test_remove_that_fails_otherwise_says_so(tree: FakeCgroupTree, cgroup: Cgroup):
    tree.fail(PATH, errno.EROFS, "rmdir")

    with pytest.raises(OSError, match="Read-only"):
        cgroup.remove()


def test_place_needs_a_live_process(cgroup: Cgroup):
    with pytest.raises(ProcessLookupError):
        cgroup.place(2**30)
