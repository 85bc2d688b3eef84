from pathlib import Path

from jobworker.output.filesystem import file_system

TABLE = """\
21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /var/log rw shared:2 - ramfs none rw
23 22 0:21 / /var/log/a\\040b rw - vfat /dev/sdb1 rw
24 21 0:22 / /srv rw - nfs4 host:/srv rw
25 21 0:23 / /srv rw - overlay overlay rw
garbage
"""


def test_the_deepest_mount_above_a_directory_names_its_file_system(tmp_path):
    (tmp_path / "mountinfo").write_text(TABLE)
    names = {
        place: file_system(Path(place), tmp_path / "mountinfo")
        for place in ("/", "/var", "/var/log", "/var/log/jobs", "/var/log/a b/c", "/var/logs")
    }
    assert names == {
        "/": "ext4",
        "/var": "ext4",
        "/var/log": "ramfs",
        "/var/log/jobs": "ramfs",
        "/var/log/a b/c": "vfat",
        "/var/logs": "ext4",
    }


def test_of_two_mounts_at_one_place_the_later_one_counts(tmp_path):
    (tmp_path / "mountinfo").write_text(TABLE)
    assert file_system(Path("/srv/x"), tmp_path / "mountinfo") == "overlay"


def test_without_a_table_it_is_unknown(tmp_path):
    assert file_system(tmp_path, tmp_path / "missing") == "unknown"


def test_this_hosts_table_is_understood(tmp_path):
    assert file_system(tmp_path) != "unknown"
