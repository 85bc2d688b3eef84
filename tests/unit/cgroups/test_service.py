"""The tree of all jobs' cgroups, in the fake tree."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from jobworker.cgroups import Cgroup, CpuMax, DeviceLimit, Limits, Service
from jobworker.cgroups.devices import Devices
from jobworker.errors import (
    CgroupUnavailable,
    ControllerUnavailable,
    InvalidArgument,
    LimitNotApplied,
    ResourceExhausted,
)
from jobworker.testing import FakeCgroupTree

if TYPE_CHECKING:
    from pathlib import Path

JOB = "3f2c9a44-0d5e-4c39-9c4b-0a8f6b1f5f11"
JOB_PATH = f"/cgroup2/jobworker/{JOB}"
ALL_LIMITS = Limits(
    memory_min=2**20,
    memory_low=2**21,
    memory_high=2**22,
    memory_max=2**23,
    memory_swap_max=0,
    memory_oom_group=True,
    cpu_weight=50,
    cpu_max=CpuMax(50_000),
    cpu_burst_max=20_000,
    io_weight=300,
    io_max_rbps=(DeviceLimit("254:0", 10**6),),
    io_max_wiops=(DeviceLimit("254:0", 100),),
    pids_max=64,
)


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    """One disk, 254:0, and one that the kernel has lost since, 8:0."""
    for number in ("254:0", "8:0"):
        (tmp_path / "dev" / "block" / number).mkdir(parents=True)
    return Devices(tmp_path)


@pytest.fixture
def tree() -> FakeCgroupTree:
    return FakeCgroupTree()


@pytest.fixture
def service(tree: FakeCgroupTree, devices: Devices) -> Service:
    service = tree.service(devices=devices)
    service.setup()
    return service


def jobs(tree: FakeCgroupTree) -> list[str]:
    return [path for path in tree.cgroups() if path.startswith("jobworker/")]


def names(tree: FakeCgroupTree, path: str) -> set[str]:
    return set(tree.read(path).split())


class TestSetup:
    def test_mounts_where_nothing_is(self, tree: FakeCgroupTree):
        tree.service().setup()

        assert tree.mount_points == ["/cgroup2"]
        assert tree.cgroups() == ["jobworker"]

    def test_mounts_at_an_empty_directory(self, tree: FakeCgroupTree):
        tree.directories["/cgroup2"] = []

        tree.service().setup()

        assert tree.mount_points == ["/cgroup2"]

    def test_uses_a_mount_that_is_there(self):
        tree = FakeCgroupTree(mounted_at="/sys/fs/cgroup")

        tree.service("/sys/fs/cgroup").setup()

        assert tree.mount_points == ["/sys/fs/cgroup"]
        assert tree.cgroups() == ["jobworker"]

    def test_uses_a_cgroup_below_a_mount_and_writes_nothing_above_it(self):
        tree = FakeCgroupTree(mounted_at="/sys/fs/cgroup")
        tree.write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids")
        tree.mkdir("/sys/fs/cgroup/our.slice")
        tree.writes.clear()

        tree.service("/sys/fs/cgroup/our.slice").setup()

        assert tree.cgroups() == ["our.slice", "our.slice/jobworker"]
        assert tree.writes
        assert all(path.startswith("/sys/fs/cgroup/our.slice/") for path, _ in tree.writes)

    def test_refuses_a_directory_with_something_in_it(self, tree: FakeCgroupTree):
        tree.directories["/cgroup2"] = ["file"]

        with pytest.raises(CgroupUnavailable, match="not an empty directory"):
            tree.service().setup()

        assert tree.mount_points == []

    def test_refuses_a_cgroup_that_is_not_there(self):
        tree = FakeCgroupTree(mounted_at="/sys/fs/cgroup")

        with pytest.raises(CgroupUnavailable, match=r"there is no cgroup /sys/fs/cgroup/typo"):
            tree.service("/sys/fs/cgroup/typo").setup()

        assert tree.cgroups() == []

    def test_refuses_a_place_below_a_missing_directory(self, tree: FakeCgroupTree):
        with pytest.raises(CgroupUnavailable, match=r"cannot create /a/b"):
            tree.service("/a/b").setup()

    @pytest.mark.parametrize(
        ("number", "remedy"),
        [
            (errno.EPERM, "needs CAP_SYS_ADMIN; run the server as root, mount it beforehand"),
            (errno.ENODEV, "no cgroup v2"),
            (errno.ENOMEM, "Cannot allocate memory"),
        ],
    )
    def test_mount_that_fails_says_what_helps(self, tree: FakeCgroupTree, number: int, remedy: str):
        tree.fail("/cgroup2", number, "mount")

        with pytest.raises(CgroupUnavailable, match=remedy):
            tree.service().setup()

        assert "/cgroup2" not in tree.directories

    def test_directory_that_cannot_be_made_says_what_helps(self, tree: FakeCgroupTree):
        tree.fail("/cgroup2/jobworker", errno.EACCES, "mkdir")

        with pytest.raises(CgroupUnavailable, match="run the server as root"):
            tree.service().setup()

    def test_enables_what_limits_need_and_nothing_else(self):
        tree = FakeCgroupTree(("cpuset", "cpu", "memory", "io", "pids", "hugetlb"))

        tree.service().setup()

        for path in ("/cgroup2", "/cgroup2/jobworker"):
            assert names(tree, f"{path}/cgroup.subtree_control") == {"cpu", "memory", "io", "pids"}

    def test_twice_is_once(self, tree: FakeCgroupTree, service: Service):
        tree.writes.clear()

        service.setup()

        assert tree.writes == []
        assert tree.mount_points == ["/cgroup2"]

    def test_controller_that_is_refused_does_not_lose_the_others(
        self, tree: FakeCgroupTree, devices: Devices
    ):
        tree.fail("/cgroup2/*", errno.EINVAL, text="+memory")
        service = tree.service(devices=devices)

        service.setup()

        states = service.controllers()
        assert [name for name, c in states.items() if c.available] == ["cpu", "io", "pids"]
        assert states["memory"].reason == (
            "the memory controller is not enabled for jobs: the kernel refused '+memory' in "
            "/cgroup2/cgroup.subtree_control: Invalid argument"
        )

    def test_processes_in_the_way_are_named(self):
        tree = FakeCgroupTree(mounted_at="/sys/fs/cgroup")
        tree.write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
        tree.mkdir("/sys/fs/cgroup/x.service")
        tree.write("/sys/fs/cgroup/x.service/cgroup.procs", "77")
        service = tree.service("/sys/fs/cgroup/x.service")

        service.setup()

        reason = service.controllers()["memory"].reason
        assert "processes are in that cgroup itself (77)" in reason
        assert "/sys/fs/cgroup/x.service/cgroup.subtree_control" in reason


def forbid(*directories: str) -> FakeCgroupTree:
    tree = FakeCgroupTree(mounted_at="/sys/fs/cgroup")
    tree.mkdir("/sys/fs/cgroup/full")
    tree.mkdir("/sys/fs/cgroup/full/jobworker")
    tree.forbidden.update(directories)
    return tree


class TestCheckSetup:
    @pytest.mark.parametrize(
        ("root", "promise"),
        [
            ("/sys/fs/cgroup/full", "which is there"),
            ("/sys/fs/cgroup", "which will be created"),
            ("/empty", "cgroup2 will be mounted at /empty"),
            ("/missing", "/missing will be created, and cgroup2 mounted there"),
        ],
    )
    def test_says_what_setup_would_do_and_does_nothing(self, root: str, promise: str):
        tree = forbid()
        tree.directories["/empty"] = []
        before = (tree.cgroups(), dict(tree.directories), list(tree.mount_points))
        service = tree.service(root)

        said = service.check_setup()

        assert promise in said
        assert f"jobs will live in {root}/jobworker" in said
        assert (tree.cgroups(), tree.directories, tree.mount_points) == before
        assert tree.writes == []
        service.setup()
        assert f"{root}/jobworker" in service.check_setup()

    @pytest.mark.parametrize(
        ("root", "forbidden"),
        [
            ("/full", ""),
            ("/sys/fs/cgroup/typo", ""),
            ("/a/b", ""),
            ("/missing", "/"),
            ("/sys/fs/cgroup", "/sys/fs/cgroup"),
            ("/sys/fs/cgroup/full", "/sys/fs/cgroup/full/jobworker"),
        ],
    )
    def test_refuses_what_setup_refuses_in_the_same_words(self, root: str, forbidden: str):
        tree = forbid(forbidden)
        tree.directories["/full"] = ["file"]
        with pytest.raises(CgroupUnavailable) as told:
            tree.service(root).check_setup()

        with pytest.raises(CgroupUnavailable) as met:
            tree.service(root).setup()

        assert str(told.value) == str(met.value)

    @pytest.mark.parametrize("lack", ["has_cgroup2", "may_mount"])
    def test_knows_when_nothing_can_be_mounted(self, tree: FakeCgroupTree, lack: str):
        setattr(tree, lack, False)
        with pytest.raises(CgroupUnavailable) as told:
            tree.service().check_setup()

        with pytest.raises(CgroupUnavailable) as met:
            tree.service().setup()

        assert str(told.value) == str(met.value)

    def test_place_that_cannot_be_looked_at_is_refused(self, tmp_path: Path):
        """Linux follows at most 40 symbolic links (path_resolution(7))."""
        (tmp_path / "loop").symlink_to("loop")
        service = Service(tmp_path / "loop" / "below")

        with pytest.raises(CgroupUnavailable, match=r"cannot look at .*: Too many levels"):
            service.check_setup()
        with pytest.raises(CgroupUnavailable, match="cannot look at"):
            service.setup()


class TestControllers:
    def test_all_are_available_after_setup(self, service: Service):
        assert all(c.available and not c.reason for c in service.controllers().values())

    @pytest.mark.parametrize("mounted_at", ["", "/cgroup2", "/sys/fs/cgroup"])
    def test_before_setup_they_are_what_it_would_bring(self, mounted_at: str):
        tree = FakeCgroupTree(
            ("cpu", "pids"), bound_to_v1={"io": "/sys/fs/cgroup/blkio"}, mounted_at=mounted_at
        )
        service = tree.service()
        before = service.controllers()
        assert tree.cgroups() == tree.writes == []

        service.setup()

        assert service.controllers() == before
        assert [name for name, c in before.items() if c.available] == ["cpu", "pids"]

    def test_not_enabled_for_jobs_by_whoever_set_up(self):
        tree = FakeCgroupTree(mounted_at="/cgroup2")
        tree.mkdir("/cgroup2/jobworker")

        reason = tree.service().controllers()["cpu"].reason

        assert "missing in the cgroup.subtree_control of their directory" in reason

    def test_bound_to_v1(self):
        tree = FakeCgroupTree(("cpu",), bound_to_v1={"io": "/sys/fs/cgroup/blkio"})
        service = tree.service()
        service.setup()

        states = service.controllers()

        assert states["cpu"].available
        assert states["io"].bound_at == "/sys/fs/cgroup/blkio"
        assert "this kernel has no pids controller" in states["pids"].reason

    def test_not_delegated(self):
        tree = FakeCgroupTree(mounted_at="/sys/fs/cgroup")
        tree.mkdir("/sys/fs/cgroup/x.service")

        states = tree.service("/sys/fs/cgroup/x.service").controllers()

        assert "not delegated to /sys/fs/cgroup/x.service" in states["memory"].reason


class TestCreate:
    def test_without_limits(self, tree: FakeCgroupTree, service: Service):
        cgroup = service.create_cgroup(JOB)

        assert cgroup == Cgroup(JOB_PATH)
        assert cgroup.id == JOB
        assert jobs(tree) == [f"jobworker/{JOB}"]

    def test_what_a_job_can_nest_is_bounded(self, tree: FakeCgroupTree, service: Service):
        service.create_cgroup(JOB)

        assert tree.read(f"{JOB_PATH}/cgroup.max.depth") == "32\n"
        assert tree.read(f"{JOB_PATH}/cgroup.max.descendants") == "1024\n"

    def test_kernel_that_cannot_bound_what_is_nested_will_do(self):
        old = frozenset({"cgroup.max.depth", "cgroup.max.descendants", "cgroup.type"})
        service = FakeCgroupTree(without=old).service()

        assert service.create_cgroup(JOB).processes() == []

    def test_bound_that_is_refused_leaves_nothing(self, tree: FakeCgroupTree, service: Service):
        tree.fail("*/cgroup.max.depth", errno.EACCES)

        with pytest.raises(CgroupUnavailable, match=r"cannot limit .*max\.depth"):
            service.create_cgroup(JOB)

        assert tree.cgroups() == ["jobworker"]

    def test_job_that_made_its_cgroup_threaded_is_named(
        self, tree: FakeCgroupTree, service: Service
    ):
        culprit = service.create_cgroup(str(uuid4()))
        tree.set(f"{culprit.path}/cgroup.type", "threaded\n")
        tree.answer(f"{JOB_PATH}/cgroup.type", lambda: "domain invalid\n")

        with pytest.raises(CgroupUnavailable, match=f"{culprit.id} beside it .*stop that job"):
            service.create_cgroup(JOB)

        assert tree.cgroups() == ["jobworker", f"jobworker/{culprit.id}"]

    def test_threaded_cgroup_above_is_named(self, tree: FakeCgroupTree, service: Service):
        tree.answer(f"{JOB_PATH}/cgroup.type", lambda: "domain invalid\n")

        with pytest.raises(CgroupUnavailable, match="/cgroup2/jobworker is, or is in, a threaded"):
            service.create_cgroup(JOB)

    def test_limits_are_in_force(self, service: Service):
        assert service.create_cgroup(JOB, ALL_LIMITS).limits() == ALL_LIMITS

    def test_quota_comes_before_burst(self, tree: FakeCgroupTree, service: Service):
        service.create_cgroup(JOB, ALL_LIMITS)

        files = [path.rpartition("/")[2] for path, _ in tree.writes]
        assert files.index("cpu.max") < files.index("cpu.max.burst")

    def test_size_is_rounded_as_the_kernel_does(self, service: Service):
        page = service._page_size

        cgroup = service.create_cgroup(JOB, Limits(memory_max=1000 * page + 7))

        assert cgroup.limits().memory_max == 1000 * page

    @pytest.mark.parametrize(
        "job_id", ["", "..", "a/b", JOB.upper(), JOB.replace("-", ""), f"{{{JOB}}}", f"{JOB}/x"]
    )
    def test_id_must_be_a_uuid_before_it_is_a_path(
        self, tree: FakeCgroupTree, service: Service, job_id: str
    ):
        for attempt in (service.create_cgroup, service.cgroup, service.remove_cgroup):
            with pytest.raises(InvalidArgument) as caught:
                attempt(job_id)
            assert caught.value.field == "job_id"

        assert jobs(tree) == []

    def test_impossible_limit_creates_nothing(self, tree: FakeCgroupTree, service: Service):
        before = len(tree.writes)

        with pytest.raises(InvalidArgument, match=r"limits\.cpu_weight"):
            service.create_cgroup(JOB, Limits(cpu_weight=0))

        assert jobs(tree) == []
        assert len(tree.writes) == before

    def test_unknown_device_creates_nothing(self, tree: FakeCgroupTree, service: Service):
        tree.fail("*", errno.EIO, "mkdir")

        with pytest.raises(InvalidArgument, match=r"limits\.io_max_rbps: .*9:9"):
            service.create_cgroup(JOB, Limits(io_max_rbps=(DeviceLimit("9:9", 1000),)))

    def test_missing_controller_creates_nothing_and_says_what_to_do(self):
        tree = FakeCgroupTree(("cpu",), bound_to_v1={"memory": "/sys/fs/cgroup/memory"})
        service = tree.service()

        with pytest.raises(ControllerUnavailable) as caught:
            service.create_cgroup(JOB, Limits(cpu_weight=7, memory_max=2**20))

        assert str(caught.value) == (
            f"cannot apply memory.max to job {JOB}: the memory controller is bound to cgroup v1 at "
            "/sys/fs/cgroup/memory; boot with cgroup_no_v1=memory (or "
            "systemd.unified_cgroup_hierarchy=1)"
        )
        assert jobs(tree) == []

    def test_missing_controller_is_no_matter_without_limits(self):
        tree = FakeCgroupTree(())

        tree.service().create_cgroup(JOB)

        assert jobs(tree) == [f"jobworker/{JOB}"]

    def test_missing_file_leaves_nothing_and_names_the_kernel(self):
        tree = FakeCgroupTree(without=frozenset({"cpu.max.burst"}))

        with pytest.raises(ControllerUnavailable, match=r"cpu\.max\.burst \(needs Linux 5\.14\)"):
            tree.service().create_cgroup(JOB, Limits(cpu_max=CpuMax(5000), cpu_burst_max=5000))

        assert jobs(tree) == []

    @pytest.mark.parametrize("missing", ["io.weight", "io.bfq.weight"])
    def test_either_file_does_for_io_weight(self, missing: str):
        tree = FakeCgroupTree(without=frozenset({missing}))

        cgroup = tree.service().create_cgroup(JOB, Limits(io_weight=1200))

        assert cgroup.limits() == Limits(io_weight=1200)

    def test_io_weight_goes_to_both_files(self):
        tree = FakeCgroupTree(without=frozenset())

        tree.service().create_cgroup(JOB, Limits(io_weight=1200))

        assert tree.read(f"{JOB_PATH}/io.weight") == "default 1200\n"
        assert tree.read(f"{JOB_PATH}/io.bfq.weight") == "default 200\n"

    def test_io_weight_without_any_file_says_so(self):
        tree = FakeCgroupTree(without=frozenset({"io.weight", "io.bfq.weight"}))

        with pytest.raises(ControllerUnavailable, match=r"io\.weight .*iocost.* or .*BFQ"):
            tree.service().create_cgroup(JOB, Limits(io_weight=1200))

        assert jobs(tree) == []

    @pytest.mark.parametrize("operation", ["write", "read"])
    @pytest.mark.parametrize("file", ["memory.min", "cpu.max", "io.max", "pids.max"])
    def test_file_that_fails_leaves_nothing(
        self, tree: FakeCgroupTree, service: Service, file: str, operation: str
    ):
        tree.fail(f"*/{file}", errno.EIO, operation)

        with pytest.raises(LimitNotApplied, match="Input/output error") as caught:
            service.create_cgroup(JOB, ALL_LIMITS)

        assert file in str(caught.value)
        assert JOB in str(caught.value)
        assert jobs(tree) == []

    def test_refusal_tells_the_text(self, service: Service):
        with pytest.raises(LimitNotApplied, match=r"io\.max .*'8:0 rbps=1000': No such device"):
            service.create_cgroup(JOB, Limits(io_max_rbps=(DeviceLimit("8:0", 1000),)))

    @pytest.mark.parametrize(
        "file", ["memory.max", "memory.oom.group", "cpu.max", "io.weight", "io.max", "pids.max"]
    )
    def test_limit_that_is_not_in_force_leaves_nothing(
        self, tree: FakeCgroupTree, service: Service, file: str
    ):
        tree.ignore_writes(f"*/{file}")
        limits = ALL_LIMITS if file != "cpu.max" else Limits(cpu_max=CpuMax(50_000))

        with pytest.raises(LimitNotApplied, match=r"was written but .* is in force"):
            service.create_cgroup(JOB, limits)

        assert jobs(tree) == []

    def test_file_that_is_not_understood_leaves_nothing(self, tree: FakeCgroupTree):
        tree.answer("*/pids.max", lambda: "lots\n")

        with pytest.raises(LimitNotApplied, match="cannot understand 'lots'"):
            tree.service().create_cgroup(JOB, Limits(pids_max=5))

        assert jobs(tree) == []

    def test_what_cannot_be_cleared_away_is_told(self, tree: FakeCgroupTree, service: Service):
        tree.fail("*/pids.max", errno.EIO)
        tree.fail(JOB_PATH, errno.EBUSY, "rmdir")

        with pytest.raises(LimitNotApplied) as caught:
            service.create_cgroup(JOB, Limits(pids_max=5))

        assert "the cgroup is still there" in caught.value.__notes__[0]

    def test_cgroup_that_is_there_already_is_left_alone(
        self, tree: FakeCgroupTree, service: Service
    ):
        service.create_cgroup(JOB, Limits(pids_max=5))

        with pytest.raises(CgroupUnavailable, match="is there already"):
            service.create_cgroup(JOB, Limits(pids_max=6))

        assert tree.read(f"{JOB_PATH}/pids.max") == "5\n"

    @pytest.mark.parametrize(
        ("number", "meaning"),
        [
            (errno.EAGAIN, "cgroup.max.descendants"),
            (errno.ENOSPC, "no room for another cgroup"),
            (errno.ENOMEM, "out of memory"),
        ],
    )
    def test_too_many_cgroups_is_an_exhausted_resource(
        self, tree: FakeCgroupTree, service: Service, number: int, meaning: str
    ):
        tree.fail(JOB_PATH, number, "mkdir")

        with pytest.raises(ResourceExhausted, match=f"cannot create the cgroup .*{meaning}"):
            service.create_cgroup(JOB)

    def test_limit_that_could_not_be_written_for_want_of_descriptors_is_not_the_kernels_no(
        self, tree: FakeCgroupTree, service: Service
    ):
        tree.fail(f"{JOB_PATH}/pids.max", errno.EMFILE)

        with pytest.raises(ResourceExhausted, match=r"cannot apply pids\.max .*LimitNOFILE"):
            service.create_cgroup(JOB, Limits(pids_max=6))

        assert jobs(tree) == []

    def test_cgroup_that_cannot_be_made_is_unavailable(
        self, tree: FakeCgroupTree, service: Service
    ):
        tree.fail(JOB_PATH, errno.EROFS, "mkdir")

        with pytest.raises(CgroupUnavailable, match="Read-only file system"):
            service.create_cgroup(JOB)

    @pytest.mark.parametrize("limits", [Limits(), ALL_LIMITS])
    def test_directory_that_vanished_is_set_up_again(
        self, tree: FakeCgroupTree, service: Service, limits: Limits
    ):
        tree.rmdir("/cgroup2/jobworker")

        assert service.create_cgroup(JOB, limits).limits() == limits

    @pytest.mark.parametrize("limits", [Limits(), ALL_LIMITS])
    def test_mount_that_vanished_is_set_up_again(
        self, tree: FakeCgroupTree, service: Service, limits: Limits
    ):
        tree.rmdir("/cgroup2/jobworker")
        tree.mount_points.clear()

        assert service.create_cgroup(JOB, limits).limits() == limits


class TestRemoveAndPlace:
    def test_remove(self, tree: FakeCgroupTree, service: Service):
        service.create_cgroup(JOB)
        tree.mkdir(f"{JOB_PATH}/nested")

        service.remove_cgroup(JOB)

        assert jobs(tree) == []

    def test_remove_of_a_missing_one_is_fine(self, service: Service):
        service.remove_cgroup(JOB)

    def test_remove_of_one_in_use_is_refused(self, tree: FakeCgroupTree, service: Service):
        service.place_in_cgroup(service.create_cgroup(JOB), 77)

        with pytest.raises(OSError, match="77"):
            service.remove_cgroup(JOB)

        assert jobs(tree) == [f"jobworker/{JOB}"]

    def test_place(self, service: Service):
        cgroup = service.create_cgroup(JOB)

        service.place_in_cgroup(cgroup, 77)

        assert service.cgroup(JOB).processes() == [77]


class TestCleanup:
    def test_undoes_setup(self, tree: FakeCgroupTree, service: Service):
        service.cleanup()

        assert tree.cgroups() == []
        assert tree.mount_points == []
        assert "/cgroup2" not in tree.directories

    def test_keeps_a_directory_that_it_did_not_make(self, tree: FakeCgroupTree):
        tree.directories["/cgroup2"] = []
        service = tree.service()
        service.setup()

        service.cleanup()

        assert tree.mount_points == []
        assert "/cgroup2" in tree.directories

    def test_keeps_a_mount_that_it_did_not_make(self):
        tree = FakeCgroupTree(mounted_at="/cgroup2")
        service = tree.service()
        service.setup()

        service.cleanup()

        assert tree.cgroups() == []
        assert tree.mount_points == ["/cgroup2"]

    def test_keeps_everything_while_there_is_a_job(self, tree: FakeCgroupTree, service: Service):
        service.create_cgroup(JOB)

        service.cleanup()

        assert jobs(tree) == [f"jobworker/{JOB}"]
        assert tree.mount_points == ["/cgroup2"]

    def test_keeps_the_cgroups_of_others(self, tree: FakeCgroupTree, service: Service):
        tree.mkdir("/cgroup2/other")

        service.cleanup()

        assert tree.cgroups() == ["other"]

    def test_keeps_a_mount_in_use(self, tree: FakeCgroupTree, service: Service):
        tree.fail("/cgroup2", errno.EBUSY, "unmount")

        service.cleanup()

        assert tree.mount_points == ["/cgroup2"]
        assert "/cgroup2" in tree.directories

    def test_twice_is_once(self, tree: FakeCgroupTree, service: Service):
        service.cleanup()
        service.cleanup()

        assert tree.mount_points == []

    def test_of_one_server_leaves_the_other_working(self, tree: FakeCgroupTree, service: Service):
        other = tree.service()
        other.setup()
        service.cleanup()

        other.create_cgroup(str(uuid4()))

        assert len(jobs(tree)) == 1
