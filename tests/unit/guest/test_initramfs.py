"""The archives are what cpio(5) says."""

import stat

from guest.initramfs import DIRECTORY, EXECUTABLE, Entry, pack


def parse(archive):
    """Read an archive of the format "newc": name → (mode, uid, gid, mtime, content)."""
    found, position = {}, 0
    while True:
        header = archive[position : position + 110]
        assert header[:6] == b"070701"
        fields = [int(header[start : start + 8], 16) for start in range(6, 110, 8)]
        _ino, mode, uid, gid, _nlink, mtime, size, *_devices, name_size, _check = fields
        name_end = position + 110 + name_size
        name = archive[position + 110 : name_end - 1].decode()
        assert archive[name_end - 1] == 0
        start = -(-name_end // 4) * 4
        if name == "TRAILER!!!":
            return found
        assert name not in found
        found[name] = (mode, uid, gid, mtime, archive[start : start + size])
        position = -(-(start + size) // 4) * 4


def test_file_keeps_its_content_mode_owner_and_time():
    entry = Entry("file", b"12345", EXECUTABLE, uid=1, gid=2, mtime=1_700_000_000)

    assert parse(pack([entry])) == {"file": (EXECUTABLE, 1, 2, 1_700_000_000, b"12345")}


def test_symbolic_link_holds_its_target():
    mode = stat.S_IFLNK | 0o777

    assert parse(pack([Entry("link", b"target", mode)])) == {"link": (mode, 0, 0, 0, b"target")}


def test_directories_come_before_what_is_in_them_and_once():
    archive = pack([Entry("a/b/one"), Entry("a/b/two")])

    assert list(parse(archive)) == ["a", "a/b", "a/b/one", "a/b/two"]


def test_directory_that_is_given_is_kept_as_it_is():
    private = stat.S_IFDIR | 0o700

    found = parse(pack([Entry("a", mode=private), Entry("a/file"), Entry("b/file")]))

    assert (found["a"][0], found["b"][0]) == (private, DIRECTORY)
