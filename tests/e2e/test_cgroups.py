"""Cgroups of the real kernel. Needs root and a kernel with cgroup v2.

Whatever is created is below a directory with a name of its own; the machine's mounts stay as they
are.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.cgroups import Cgroup, DeviceLimit, Limits, Service
from jobworker.cgroups.controllers import CONTROLLERS
from jobworker.cgroups.files import Files
from jobworker.errors import CgroupUnavailable, ControllerUnavailable, InvalidArgument
from jobworker.testing.contract import CORE_CHECKS, Site
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE_OF_EACH = {
    "cpu": Limits(cpu_weight=200),
    "memory": Limits(memory_max=64 * 2**20),
    "io": Limits(io_weight=200),
    "pids": Limits(pids_max=100),
}


@pytest.fixture
def root(cgroup_root: Path) -> Path:
    """A cgroup of the test's own."""
    return cgroup_root


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start programs that do not outlive the test."""
    started = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def service(root: Path) -> Iterator[Service]:
    service = Service(root)
    service.setup()
    yield service
    service.cleanup()


def job_id() -> str:
    return str(uuid.uuid4())


def end_of(process: subprocess.Popen[bytes]) -> int:
    return process.wait(PATIENCE)


@pytest.mark.parametrize("check", CORE_CHECKS, ids=lambda check: check.__name__)
def test_kernel_keeps_the_contract(
    check: Callable[[Site], None],
    root: Path,
    spawn: Callable[..., subprocess.Popen[bytes]],
):
    check(Site(Files(), str(root), spawn=lambda: spawn("sleep", "1000").pid))


def test_setup_twice_is_setup_once(service: Service):
    service.setup()

    assert service.directory.is_dir()


def test_setup_can_be_foretold(root: Path, tmp_path: Path):
    assert "will be created" in Service(root).check_setup()
    assert "cgroup2 will be mounted" in Service(tmp_path).check_setup()
    Service(root).setup()
    assert "which is there" in Service(root).check_setup()


def test_read_only_mount_is_told_from_a_lack_of_permission(tmp_path: Path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", tmp_path], check=True)
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            Files().check_writable(str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_setup_writes_nothing_above_its_root(root: Path):
    above = (root.parent / "cgroup.subtree_control").read_text()

    Service(root).setup()

    assert (root.parent / "cgroup.subtree_control").read_text() == above


def test_job_without_limits_lives_and_is_killed(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    process = spawn("sleep", "1000")
    service.place_in_cgroup(cgroup, process.pid)
    assert cgroup.processes() == [process.pid]
    assert cgroup.populated()

    cgroup.kill()

    assert end_of(process) == -signal.SIGKILL
    wait_until(lambda: not cgroup.populated())
    service.remove_cgroup(cgroup.id)
    assert not Path(cgroup.path).exists()


def test_remove_takes_nested_cgroups_along(service: Service):
    cgroup = service.create_cgroup(job_id())
    Path(cgroup.path, "a", "b", "c").mkdir(parents=True)
    Path(cgroup.path, "d").mkdir()

    service.remove_cgroup(cgroup.id)

    assert not Path(cgroup.path).exists()


def test_remove_of_a_cgroup_in_use_names_the_processes(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    process = spawn("sleep", "1000")
    cgroup.place(process.pid)

    with pytest.raises(OSError, match=str(process.pid)) as caught:
        service.remove_cgroup(cgroup.id)

    assert caught.value.errno == errno.EBUSY


def test_signal_reaches_nested_cgroups(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    nested = Path(cgroup.path, "a", "b")
    nested.mkdir(parents=True)
    inside, deep, outside = (spawn("sleep", "1000") for _ in range(3))
    cgroup.place(inside.pid)
    Cgroup(nested).place(deep.pid)

    assert cgroup.signal(signal.SIGTERM) == 2

    assert end_of(inside) == -signal.SIGTERM
    assert end_of(deep) == -signal.SIGTERM
    assert outside.poll() is None


def test_descriptor_of_events_reports_the_end(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    process = spawn("sleep", "1000")
    cgroup.place(process.pid)
    fd = cgroup.open_events()
    try:
        assert cgroup.populated(fd)
        with select.epoll() as poll:
            poll.register(fd, select.EPOLLPRI)
            assert poll.poll(0) == []
            process.kill()
            assert poll.poll(PATIENCE)
            assert not cgroup.populated(fd)
    finally:
        os.close(fd)


def test_kill_without_cgroup_kill_leaves_nobody(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    """What kernels before 5.14 need; the processes fork while they are killed."""
    cgroup = service.create_cgroup(job_id())
    nested = Path(cgroup.path, "a")
    nested.mkdir()
    forker = spawn("sh", "-c", "while :; do sleep 1000 & sleep 0.001; done")
    cgroup.place(forker.pid)
    Cgroup(nested).place(spawn("sleep", "1000").pid)
    wait_until(lambda: len(cgroup.processes()) > 5)

    Cgroup(cgroup.path, OldKernel()).kill()

    wait_until(lambda: not cgroup.populated())
    assert end_of(forker) == -signal.SIGKILL


def test_kill_takes_a_frozen_cgroup(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    process = spawn("sleep", "1000")
    cgroup.place(process.pid)
    Files().write(f"{cgroup.path}/cgroup.freeze", "1")

    cgroup.kill()

    assert end_of(process) == -signal.SIGKILL


def nest(cgroup: Cgroup, levels: int) -> int:
    """Nest cgroups deeper than a path can say, and return a descriptor of the innermost."""
    for file in ("cgroup.max.depth", "cgroup.max.descendants"):
        Files().write(f"{cgroup.path}/{file}", "max")
    fd = cgroup.open()
    for _ in range(levels):
        name = "x" * 200
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def test_cgroups_nested_deeper_than_a_path_can_be_are_signalled_and_removed(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    process = spawn("sleep", "1000")
    innermost = nest(cgroup, 40)
    procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=innermost)
    os.write(procs, str(process.pid).encode())
    os.close(procs)
    os.close(innermost)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    assert cgroup.processes() == [process.pid]
    with pytest.raises(OSError, match="still has processes") as caught:
        cgroup.remove()
    assert "38 more" in str(caught.value)
    assert len(str(caught.value)) < 1000

    assert cgroup.signal(signal.SIGTERM) == 1

    assert end_of(process) == -signal.SIGTERM
    wait_until(lambda: not cgroup.populated())
    cgroup.remove()
    assert not Path(cgroup.path).exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_job_cannot_nest_without_end(service: Service):
    cgroup = service.create_cgroup(job_id())
    deepest = Path(cgroup.path, *["x"] * 32)
    deepest.mkdir(parents=True)

    with pytest.raises(BlockingIOError):
        deepest.joinpath("x").mkdir()


def test_walk_of_too_many_cgroups_comes_to_an_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    cgroup = service.create_cgroup(job_id())
    for number in range(20):
        Path(cgroup.path, str(number), "nested").mkdir(parents=True)
    monkeypatch.setattr("jobworker.cgroups.files.MAX_NESTED", 30)

    assert len(list(Files().walk(cgroup.path))) == 31
    with pytest.raises(OSError, match="still holds others") as caught:
        cgroup.remove()

    assert caught.value.errno == errno.EBUSY
    cgroup.remove()
    assert not Path(cgroup.path).exists()


@pytest.mark.parametrize("option", [("-t", "tmpfs", "none"), ("--bind", "{other}")])
def test_what_is_mounted_over_a_nested_cgroup_is_left_alone(
    service: Service,
    spawn: Callable[..., subprocess.Popen[bytes]],
    option: tuple[str, ...],
):
    cgroup, other = service.create_cgroup(job_id()), service.create_cgroup(job_id())
    process = spawn("sleep", "1000")
    other.place(process.pid)
    kept = Path(other.path, "kept")
    kept.mkdir()
    nested = Path(cgroup.path, "nested")
    nested.mkdir()
    mount = [each.format(other=other.path) for each in option]
    subprocess.run(["mount", *mount, nested], check=True)
    try:
        if not nested.joinpath("kept").exists():
            nested.joinpath("kept").mkdir()

        assert cgroup.processes() == []
        with pytest.raises(OSError, match=r"still holds others \('nested'\)"):
            cgroup.remove()

        assert nested.joinpath("kept").is_dir()
    finally:
        subprocess.run(["umount", nested], check=True)


def make_threaded(cgroup: Cgroup) -> None:
    Files().write(f"{cgroup.path}/cgroup.type", "threaded")


def test_threaded_cgroup_is_signalled_and_killed(
    root: Path, spawn: Callable[..., subprocess.Popen[bytes]]
):
    """Its cgroup.kill answers EOPNOTSUPP, and so does its cgroup.procs."""
    cgroup = Cgroup(root / "threaded")
    Path(cgroup.path).mkdir()
    make_threaded(cgroup)
    first, second = spawn("sleep", "1000"), spawn("sleep", "1000")
    for process in (first, second):
        cgroup.place(process.pid)
    assert cgroup.processes() == sorted([first.pid, second.pid])

    assert cgroup.signal(signal.SIGTERM) == 2
    assert end_of(first) == end_of(second) == -signal.SIGTERM

    third = spawn("sh", "-c", "while :; do sleep 1000 & sleep 0.001; done")
    cgroup.place(third.pid)
    wait_until(lambda: len(cgroup.processes()) > 3)
    cgroup.kill()
    assert end_of(third) == -signal.SIGKILL
    wait_until(lambda: not cgroup.populated())


def test_no_cgroup_becomes_threaded_or_the_next_start_says_which(service: Service):
    """Which of the two depends on whether the machine has controllers of domains for us."""
    culprit, identity = service.create_cgroup(job_id()), job_id()
    enabled = Path(service.directory, "cgroup.subtree_control").read_text().split()
    if {"memory", "io"} & set(enabled):
        with pytest.raises(OSError, match="not supported"):
            make_threaded(culprit)
        return
    make_threaded(culprit)

    with pytest.raises(CgroupUnavailable, match=f"{culprit.id} beside it has been made threaded"):
        service.create_cgroup(identity)

    assert not (service.directory / identity).exists()
    culprit.remove()
    assert service.create_cgroup(identity).processes() == []


def test_usage_tells_cpu_time_without_any_controller(
    service: Service, spawn: Callable[..., subprocess.Popen[bytes]]
):
    cgroup = service.create_cgroup(job_id())
    cgroup.place(spawn("sh", "-c", "while :; do :; done").pid)

    wait_until(lambda: cgroup.usage()["cpu_user_us"] > 10_000)


def test_usage_leaves_out_what_the_kernel_does_not_report(service: Service):
    usage = service.create_cgroup(job_id()).usage()

    assert ("memory_peak" in usage) == service.controllers()["memory"].available
    assert ("io_read_bytes" in usage) == service.controllers()["io"].available


def test_limits_of_a_fresh_cgroup_are_none(service: Service):
    assert service.create_cgroup(job_id()).limits() == Limits()


def test_descriptor_of_a_cgroup_is_its_directory(service: Service):
    cgroup = service.create_cgroup(job_id())
    fd = cgroup.open()
    try:
        assert os.path.samestat(os.fstat(fd), Path(cgroup.path).stat())
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_limit_is_in_force_or_the_reason_is_given(service: Service, name: str):
    """Which of the two depends on the machine; both leave nothing doubtful behind."""
    identity, controller = job_id(), service.controllers()[name]

    if controller.available:
        assert service.create_cgroup(identity, ONE_OF_EACH[name]).limits() == ONE_OF_EACH[name]
        return
    with pytest.raises(ControllerUnavailable) as caught:
        service.create_cgroup(identity, ONE_OF_EACH[name])

    assert identity in str(caught.value)
    assert controller.reason in str(caught.value)
    if controller.bound_at:
        assert f"{controller.bound_at};" in str(caught.value)
        assert f"boot with cgroup_no_v1={name}" in str(caught.value)
    assert not (service.directory / identity).exists()


def test_controllers_bound_to_v1_are_found_where_the_kernel_says(service: Service):
    bound = {c.name: c.bound_at for c in service.controllers().values() if c.bound_at}

    for name, point in bound.items():
        listed = subprocess.check_output(["findmnt", "-no", "OPTIONS", point], text=True)
        assert {"io": "blkio"}.get(name, name) in listed.strip().split(",")


def test_unknown_device_is_refused_before_anything_is_created(service: Service):
    identity = job_id()

    with pytest.raises(InvalidArgument, match="/dev/null is not a block device"):
        service.create_cgroup(identity, Limits(io_max_rbps=(DeviceLimit("/dev/null", 10**6),)))

    assert not (service.directory / identity).exists()


def test_cleanup_leaves_the_cgroups_of_others(service: Service):
    cgroup = Service(service.root).create_cgroup(job_id())

    service.cleanup()

    assert Path(cgroup.path).is_dir()


def test_create_sets_up_again_after_another_servers_cleanup(service: Service):
    Service(service.root).cleanup()
    assert not service.directory.exists()

    cgroup = service.create_cgroup(job_id())

    assert Path(cgroup.path).is_dir()


def test_mounts_and_unmounts_where_there_is_no_cgroup2(root: Path, tmp_path: Path):
    """In a mount and cgroup namespace of its own, whose hierarchy begins at `root`."""
    report = tmp_path / "report"
    program = textwrap.dedent(f"""
        import json, os, uuid
        from pathlib import Path
        from jobworker.cgroups import Service
        from jobworker.cgroups.mounts import Mounts
        place = Path({str(tmp_path / "mounted")!r})
        service = Service(place)
        service.setup()
        job = str(uuid.uuid4())
        cgroup = service.create_cgroup(job)
        found = {{
            "mounted": Mounts().is_cgroup2(str(place)),
            "job": os.path.isdir(cgroup.path),
        }}
        service.cleanup()
        found["kept while in use"] = Mounts().is_cgroup2(str(place))
        service.remove_cgroup(job)
        service.cleanup()
        found["gone"] = not place.exists()
        Path({str(report)!r}).write_text(json.dumps(found))
    """)
    enter = f'echo $$ > {root}/inner/cgroup.procs && exec unshare -m -C "$@"'
    (root / "inner").mkdir()

    subprocess.run(
        ["sh", "-c", enter, "sh", sys.executable, "-c", program],
        check=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert json.loads(report.read_text()) == {
        "mounted": True,
        "job": True,
        "kept while in use": True,
        "gone": True,
    }


class OldKernel(Files):
    """A kernel before 5.14."""

    def write(self, path: str, text: str) -> None:
        if path.endswith("/cgroup.kill"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        super().write(path, text)
