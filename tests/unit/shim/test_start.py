import socket

import pytest

from jobworker.errors import ShimUnavailable
from jobworker.shim import start, wire


def test_shims_are_found_by_their_sockets_also_the_first_version_that_had_no_number(tmp_path):
    for name in ("shim.sock", "shim-7.sock", "shim-1.sock", "shim-x.sock", "shim.lock"):
        (tmp_path / name).touch()
    assert start.versions(tmp_path) == [1, 7]


def test_each_version_is_reached_by_its_own_socket(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "shim.sock"))
        listening.listen()
        assert start.connect(tmp_path, wire.VERSION) is None
        connection = start.connect(tmp_path, 1)
        assert connection is not None
        connection.close()


def test_a_shim_that_takes_no_connection_any_more_is_said_not_to_answer(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(str(tmp_path / wire.SOCKET_NAME))
        listening.listen(0)
        other.connect(str(tmp_path / wire.SOCKET_NAME))
        with pytest.raises(ShimUnavailable, match="does not answer, and its process"):
            start.connect(tmp_path, wire.VERSION)
