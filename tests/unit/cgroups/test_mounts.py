"""The mount table, on text that kernels have written."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from jobworker.cgroups.mounts import (
    Mount,
    Mounts,
    Subsystem,
    cgroup2_options,
    holds_capability,
    parse_filesystems,
    parse_mountinfo,
    parse_proc_cgroups,
    read_names,
)

MOUNTINFO = r"""
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /a\040b /mnt/with\040space\134and\011more rw shared:1 master:2 - cgroup cgroup rw,memory
40 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
PROC_CGROUPS = """\
#subsys_name	hierarchy	num_cgroups	enabled
cpuset	3	1	1
blkio	7	1	1
memory	0	14	0
"""


def test_mountinfo_with_and_without_optional_fields():
    mounts = {m.point: m for m in parse_mountinfo(MOUNTINFO)}

    assert mounts["/sys"] == Mount("0:22", "/sys", "sysfs", ("rw",))
    assert mounts["/sys/fs/cgroup/cpu,cpuacct"].options == ("rw", "cpu", "cpuacct")
    assert mounts["/sys/fs/cgroup"].kind == "cgroup2"


def test_octal_escapes_are_undone():
    assert "/mnt/with space\\and\tmore" in {m.point for m in parse_mountinfo(MOUNTINFO)}


def test_what_is_no_mount_is_passed_over():
    assert parse_mountinfo("\nnonsense - \n1 2 3\n") == ()


def test_a_mount_whose_name_is_no_text_hides_no_other(tmp_path):
    path = tmp_path / "mountinfo"
    line = b"22 27 0:21 / /mnt/\xff\xc2\x85name rw - proc proc rw\n"
    path.write_bytes(line + MOUNTINFO.encode())
    mounts = parse_mountinfo(read_names(str(path)))
    assert mounts[0].point == "/mnt/\udcff\x85name"
    assert mounts[1:] == parse_mountinfo(MOUNTINFO)


def test_proc_cgroups():
    assert parse_proc_cgroups(PROC_CGROUPS) == {
        "cpuset": Subsystem(3, enabled=True),
        "blkio": Subsystem(7, enabled=True),
        "memory": Subsystem(0, enabled=False),
    }


def test_mounting_again_repeats_the_options_in_force():
    assert cgroup2_options(parse_mountinfo(MOUNTINFO)) == "nsdelegate,memory_recursiveprot"


def test_options_of_other_layers_are_not_repeated():
    mount = Mount("0:1", "/a", "cgroup2", ("rw", "seclabel", "pids_localevents"))

    assert cgroup2_options((mount,)) == "pids_localevents"


def test_first_mount_has_no_options():
    assert cgroup2_options(()) == ""


class RecordingLibrary:
    """A C library that notes what it is asked to mount."""

    def __init__(self, result: int) -> None:
        self.calls: list[tuple[object, ...]] = []
        self._result = result

    def mount(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return self._result

    def umount2(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return self._result


class Systemd(Mounts):
    """A host whose cgroup2 has options in force."""

    def table(self) -> tuple[Mount, ...]:
        return parse_mountinfo(MOUNTINFO)


def test_mount_passes_the_options_in_force(monkeypatch: pytest.MonkeyPatch):
    library = RecordingLibrary(0)
    monkeypatch.setattr("jobworker.cgroups.mounts._libc", lambda: library)

    Systemd().mount_cgroup2("/cgroup2")

    _, target, kind, _, options = library.calls[0]
    assert (target, kind) == (b"/cgroup2", b"cgroup2")
    assert options == b"nsdelegate,memory_recursiveprot"


def test_calls_that_fail_raise_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch):
    library = RecordingLibrary(-1)
    monkeypatch.setattr("jobworker.cgroups.mounts._libc", lambda: library)
    for attempt in (Mounts().mount_cgroup2, Mounts().unmount):
        ctypes.set_errno(errno.EPERM)
        with pytest.raises(PermissionError, match="/cgroup2"):
            attempt("/cgroup2")


def test_own_mount_table_has_a_root():
    assert "/" in {mount.point for mount in Mounts().table()}


def test_ordinary_directory_is_not_cgroup2(tmp_path: Path):
    assert not Mounts().is_cgroup2(str(tmp_path))
    assert not Mounts().is_cgroup2(str(tmp_path / "missing"))


def test_directories_are_told_apart(tmp_path: Path):
    mounts, empty, full = Mounts(), tmp_path / "full" / "empty", tmp_path / "full"
    full.mkdir()
    mounts.make_directory(str(empty))
    file = full / "file"
    file.touch()

    assert mounts.is_empty_directory(str(empty))
    assert not mounts.is_empty_directory(str(full))
    assert not mounts.is_empty_directory(str(file))
    assert not mounts.is_empty_directory(str(full / "missing"))
    assert mounts.is_missing(str(full / "missing"))
    assert not mounts.is_missing(str(file))

    mounts.remove_directory(str(empty))
    assert not empty.exists()


def test_making_a_directory_is_judged_before_it_is_tried(tmp_path: Path):
    mounts = Mounts()
    (tmp_path / "file").touch()
    mounts.check_make_directory(str(tmp_path / "new"))
    for below, problem in (("missing", FileNotFoundError), ("file", NotADirectoryError)):
        path = str(tmp_path / below / "new")
        with pytest.raises(problem):
            mounts.check_make_directory(path)
        with pytest.raises(problem):
            mounts.make_directory(path)
    assert not (tmp_path / "new").exists()


def test_file_systems_of_the_kernel():
    assert parse_filesystems("nodev\tcgroup2\n\text4\n") == {"cgroup2", "ext4"}
    assert "proc" in parse_filesystems(Path("/proc/filesystems").read_text())


@pytest.mark.parametrize(
    ("mask", "held"), [("0000000000200000", True), ("ffffffffffdfffff", False)]
)
def test_capability_in_effect(mask: str, held: bool):
    assert holds_capability(f"Name:\tx\nCapPrm:\t{2**64 - 1:x}\nCapEff:\t{mask}\n", 21) is held
