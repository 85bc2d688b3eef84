"""What a guest gets in memory can be found there as on the host."""

from guest.hot import _way


def test_way_to_a_file_leads_through_its_directories(tmp_path):
    file = tmp_path / "a" / "file"
    file.parent.mkdir()
    file.touch()

    assert list(_way(file)) == [*reversed(file.parents[:-1]), file]


def test_way_through_links_has_the_links_and_what_they_lead_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "directory").symlink_to("real")
    (tmp_path / "link").symlink_to(tmp_path / "directory" / "file")

    way = list(_way(tmp_path / "link"))

    assert way[-1] == tmp_path / "real" / "file"
    assert {tmp_path / "link", tmp_path / "directory", tmp_path / "real"} <= set(way)


def test_way_to_what_is_missing_is_empty(tmp_path):
    (tmp_path / "link").symlink_to("link")

    assert list(_way(tmp_path / "missing")) == []
    assert list(_way(tmp_path / "link")) == []
