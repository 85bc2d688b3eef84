"""Which cgroup is the root, and how the server leaves it; in the fake tree."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jobworker.cgroups import choose_root
from jobworker.cgroups.delegation import OWN, own_cgroup, parse_own_cgroup, places
from jobworker.cgroups.mounts import Mount
from jobworker.errors import CgroupUnavailable
from jobworker.testing import FakeCgroupTree

MOUNT = "/sys/fs/cgroup"
UNIT = f"{MOUNT}/x.service"
LEAF = f"{UNIT}/server"
DEFAULT = Path("/cgroup2")
ALL = {"cpu", "memory", "io", "pids"}


@pytest.fixture
def tree() -> FakeCgroupTree:
    """A unit's cgroup with this process in it, and every controller."""
    tree = FakeCgroupTree(mounted_at=MOUNT)
    tree.write(f"{MOUNT}/cgroup.subtree_control", "+cpu +memory +io +pids")
    tree.mkdir(UNIT)
    move(tree, UNIT)
    return tree


def move(tree: FakeCgroupTree, cgroup: str, pid: int | None = None) -> None:
    tree.write(f"{cgroup}/cgroup.procs", str(os.getpid() if pid is None else pid))
    tree.writes.clear()


def choose(tree: FakeCgroupTree, given: Path | None = None) -> str:
    root = choose_root(given, default=DEFAULT, files=tree.files, mounts=tree.mounts)
    return str(root.path)


def words(tree: FakeCgroupTree, path: str) -> set[str]:
    return set(tree.read(path).split())


class TestPlaces:
    """Names as /proc/<pid>/cgroup and mountinfo give them, inside cgroup namespaces too."""

    @pytest.mark.parametrize(
        ("root", "cgroup", "place"),
        [
            ("/", "/", "/m"),
            ("/", "/a/b", "/m/a/b"),
            ("/a", "/a", "/m"),
            ("/a", "/a/b", "/m/b"),
            ("/..", "/../sibling", "/m/sibling"),
        ],
    )
    def test_cgroup_below_the_root_of_a_mount_is_seen(self, root: str, cgroup: str, place: str):
        assert list(places(cgroup, [Mount("0:1", "/m", "cgroup2", (), root)])) == [place]

    @pytest.mark.parametrize(
        ("root", "cgroup"),
        [("/a", "/"), ("/a", "/ab"), ("/a", "/b"), ("/", "/.."), ("/..", "/../.."), ("/..", "/")],
    )
    def test_cgroup_elsewhere_is_not(self, root: str, cgroup: str):
        assert list(places(cgroup, [Mount("0:1", "/m", "cgroup2", (), root)])) == []

    def test_mounts_of_other_file_systems_show_none(self):
        assert list(places("/a", [Mount("0:1", "/m", "cgroup", ("rw", "cpu"))])) == []

    def test_mount_at_the_top_of_the_file_system(self):
        assert list(places("/a", [Mount("0:1", "/", "cgroup2", ())])) == ["/a"]

    def test_own_cgroup_is_the_line_of_the_unified_hierarchy(self):
        assert parse_own_cgroup("9:name=systemd:/b\n4:memory:/c\n0::/a:b\n") == "/a:b"
        assert parse_own_cgroup("9:name=systemd:/b\n") == ""

    def test_mount_that_shows_other_cgroups_by_our_name_is_passed_over(self, tree: FakeCgroupTree):
        """As one of an outer namespace, or one below another mount, would."""
        tree.answer(f"{UNIT}/cgroup.procs", lambda: "1\n")

        assert own_cgroup(tree.files, tree.mounts) is None

    def test_cgroup_that_was_removed_is_passed_over(self, tree: FakeCgroupTree):
        tree.fail(f"{UNIT}/*", errno.ENODEV, "read")

        assert own_cgroup(tree.files, tree.mounts) is None


class TestChoice:
    def test_root_that_was_given_is_used_whatever_else_there_is(self, tree: FakeCgroupTree):
        tree.delegated.add(UNIT)

        assert choose(tree, Path("/elsewhere")) == "/elsewhere"

    def test_own_cgroup_is_used_if_it_was_delegated(self, tree: FakeCgroupTree):
        tree.delegated.add(UNIT)

        assert choose(tree) == UNIT

    def test_own_cgroup_is_not_used_without_being_asked_for(self, tree: FakeCgroupTree):
        assert choose(tree) == str(DEFAULT)

    def test_own_cgroup_is_used_if_asked_for(self, tree: FakeCgroupTree):
        assert choose(tree, OWN) == UNIT

    @pytest.mark.parametrize("given", [None, OWN])
    def test_server_in_the_leaf_belongs_to_the_delegated_cgroup(
        self, tree: FakeCgroupTree, given: Path | None
    ):
        tree.delegated.add(UNIT)
        tree.mkdir(LEAF)
        move(tree, LEAF)

        assert choose(tree, given) == UNIT

    def test_delegated_cgroup_of_somebody_else_above_is_not_taken(self, tree: FakeCgroupTree):
        tree.delegated.add(UNIT)
        tree.mkdir(f"{UNIT}/app.slice")
        move(tree, f"{UNIT}/app.slice")

        assert choose(tree) == str(DEFAULT)

    def test_own_cgroup_that_no_mount_shows_cannot_be_asked_for(self):
        with pytest.raises(CgroupUnavailable, match="no cgroup2 that is mounted here shows it"):
            choose(FakeCgroupTree(), OWN)

    def test_without_any_mount_it_is_the_default(self):
        assert choose(FakeCgroupTree()) == str(DEFAULT)

    @pytest.mark.parametrize("given", [None, OWN, Path("/elsewhere")])
    def test_choosing_changes_nothing(self, tree: FakeCgroupTree, given: Path | None):
        tree.delegated.add(UNIT)

        choose(tree, given)

        assert tree.writes == []
        assert tree.cgroups() == ["x.service"]


class TestLeaf:
    def test_server_leaves_the_root_and_controllers_are_enabled(self, tree: FakeCgroupTree):
        tree.service(UNIT).setup()

        assert tree.cgroup_of(os.getpid()) == "/x.service/server"
        for cgroup in (UNIT, f"{UNIT}/jobworker"):
            assert words(tree, f"{cgroup}/cgroup.subtree_control") == ALL

    def test_nothing_is_written_above_the_root_or_beside_it(self, tree: FakeCgroupTree):
        tree.mkdir(f"{MOUNT}/other")

        service = tree.service(UNIT)
        service.setup()
        service.cleanup()

        assert tree.writes
        assert all(path.startswith(f"{UNIT}/") for path, _ in tree.writes)

    def test_only_the_server_itself_is_moved_and_the_rest_is_named(self, tree: FakeCgroupTree):
        move(tree, UNIT, 77)
        service = tree.service(UNIT)

        service.setup()

        assert tree.read(f"{UNIT}/cgroup.procs") == "77\n"
        reason = service.controllers()["memory"].reason
        assert "processes are in that cgroup itself (77)" in reason

    def test_server_stays_in_the_root_of_the_whole_hierarchy(self):
        """Which may hold processes and pass controllers on."""
        tree = FakeCgroupTree(mounted_at=MOUNT)
        move(tree, MOUNT)

        tree.service(MOUNT).setup()

        assert tree.cgroup_of(os.getpid()) == "/"
        assert tree.cgroups() == ["jobworker"]

    def test_server_that_lives_elsewhere_stays_there(self, tree: FakeCgroupTree):
        tree.mkdir(f"{MOUNT}/other")
        move(tree, f"{MOUNT}/other")

        tree.service(UNIT).setup()

        assert tree.cgroup_of(os.getpid()) == "/other"
        assert not tree.exists(LEAF)

    @pytest.mark.parametrize("again_in", [UNIT, LEAF])
    def test_next_server_copes_with_either_place(self, tree: FakeCgroupTree, again_in: str):
        tree.service(UNIT).setup()
        if again_in == UNIT:
            # A service manager empties it first: nobody may enter a cgroup that passes controllers.
            for cgroup in (f"{UNIT}/jobworker", UNIT):
                tree.write(f"{cgroup}/cgroup.subtree_control", "-cpu -memory -io -pids")
        move(tree, again_in)

        tree.service(UNIT).setup()

        assert tree.cgroup_of(os.getpid()) == "/x.service/server"
        assert words(tree, f"{UNIT}/jobworker/cgroup.subtree_control") == ALL

    def test_move_that_fails_says_what_helps(self, tree: FakeCgroupTree):
        tree.fail(f"{LEAF}/cgroup.procs", errno.EACCES)

        with pytest.raises(CgroupUnavailable) as caught:
            tree.service(UNIT).setup()

        assert str(caught.value) == (
            f"cannot move the server out of {UNIT} into server below it: Permission denied; start "
            "it there, or give it a cgroup root that belongs to its user (--cgroup-root)"
        )

    def test_cleanup_leaves_the_leaf_that_the_server_lives_in(self, tree: FakeCgroupTree):
        service = tree.service(UNIT)
        service.setup()

        service.cleanup()

        assert tree.cgroups() == ["x.service", "x.service/server"]


class TestForeseen:
    def test_move_is_announced_and_not_made(self, tree: FakeCgroupTree):
        said = tree.service(UNIT).check_setup()

        assert said.endswith(f"; the server will move from {UNIT} to server below it")
        assert tree.writes == []
        assert tree.cgroups() == ["x.service"]

    def test_no_move_is_announced_where_there_is_none(self, tree: FakeCgroupTree):
        tree.mkdir(LEAF)
        move(tree, LEAF)

        assert "move" not in tree.service(UNIT).check_setup()

    @pytest.mark.parametrize("beside", [[], [77]])
    def test_controllers_are_what_setup_will_bring(self, tree: FakeCgroupTree, beside: list[int]):
        for pid in beside:
            move(tree, UNIT, pid)
        service = tree.service(UNIT)
        before = service.controllers()

        service.setup()

        assert service.controllers() == before
        assert [c.available for c in before.values()] == [not beside] * 4
