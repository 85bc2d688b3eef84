"""Connections to shims of several versions, of which the others are played by a test."""

import logging

import pytest

from jobworker.errors import ShimUnavailable
from jobworker.job.custody.links import Links
from jobworker.shim import wire
from jobworker.testing.shim import FakeShim
from tests.support.waiting import until

OTHER = wire.VERSION + 1


class Other:
    """A shim of another version, and the connections to it."""

    def __init__(self):
        self.jobs = {"old-1", "old-2"}
        self.clients = []
        self.listens = True


class Client:
    def __init__(self, jobs, on_ended, on_disconnect):
        self.jobs = frozenset(jobs)
        self.lost = False
        self.on_ended = on_ended
        self.on_disconnect = on_disconnect

    async def close(self):
        self.lost = True

    def lose(self):
        self.lost = True
        self.on_disconnect()


class End:
    def __init__(self, job_id):
        self.job_id = job_id


class Host:
    def __init__(self, directory, shim):
        self.other = Other()
        self.shim = shim
        self.ends = []
        self.reconciled = 0
        (directory / f"shim-{OTHER}.sock").touch()
        self.links = Links(
            directory, on_ended=self.ends.append, reconcile=self.reconcile, connect=self.connect
        )

    async def reconcile(self, _client):
        self.reconciled += 1

    async def connect(self, run_dir, *, on_ended, on_disconnect, version=None):
        if version is None:
            return await self.shim.connect(run_dir, on_ended=on_ended, on_disconnect=on_disconnect)
        assert version == OTHER
        if not self.other.listens:
            raise ShimUnavailable("nobody listens")
        client = Client(self.other.jobs, on_ended, on_disconnect)
        self.other.clients.append(client)
        return client


@pytest.fixture
async def host(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "SPEAKS", frozenset({wire.VERSION, OTHER}))
    with FakeShim() as shim:
        host = Host(tmp_path, shim)
        yield host
        await host.links.close()


async def test_a_job_of_another_version_is_asked_after_where_it_is(host):
    await host.links.open()
    (client,) = host.other.clients
    assert host.links.holder("old-1") is client
    assert host.links.holder("new") is None
    assert await host.links.client() is not client


async def test_a_shim_of_another_version_is_left_with_its_last_job(host):
    await host.links.open()
    (client,) = host.other.clients
    client.on_ended(End("old-1"))
    assert not client.lost
    client.on_ended(End("old-2"))
    await until(lambda: client.lost)
    assert [end.job_id for end in host.ends] == ["old-1", "old-2"]
    assert host.links.holder("old-2") is None


async def test_a_shim_of_another_version_without_jobs_is_left_at_once(host):
    host.other.jobs = set()
    await host.links.open()
    await until(lambda: host.other.clients[0].lost)


async def test_when_a_shim_of_another_version_dies_its_jobs_are_found_out_about(host):
    await host.links.open()
    host.other.listens = False
    host.other.clients[0].lose()
    assert host.links.holder("old-1") is None
    await until(lambda: host.reconciled == 2)


async def test_a_shim_of_another_version_that_is_only_out_of_reach_is_reached_again(host):
    await host.links.open()
    host.other.clients[0].lose()
    await until(lambda: len(host.other.clients) == 2)
    assert host.links.holder("old-1") is host.other.clients[1]


async def test_a_shim_that_cannot_be_spoken_to_is_left_alone_and_named(host, monkeypatch, caplog):
    monkeypatch.setattr(wire, "SPEAKS", frozenset({wire.VERSION}))
    with caplog.at_level(logging.WARNING):
        await host.links.open()
    assert host.other.clients == []
    assert f"protocol version {OTHER}" in caplog.text


async def test_a_socket_that_nobody_listens_on_keeps_no_server_from_starting(host):
    host.other.listens = False
    await host.links.open()
    assert host.links.holder("old-1") is None


async def test_closing_closes_every_connection(host):
    await host.links.open()
    await host.links.close()
    assert host.other.clients[0].lost
    assert host.shim.connected == []
