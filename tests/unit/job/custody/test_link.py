import asyncio
from pathlib import Path

import pytest

from jobworker.errors import ShimUnavailable
from jobworker.job.custody.link import Link
from jobworker.testing.shim import FakeShim
from tests.support.waiting import PATIENCE


@pytest.fixture
def shim():
    with FakeShim() as shim:
        yield shim


def link_to(shim, reconcile):
    return Link(Path("/run"), on_ended=lambda _end: None, reconcile=reconcile, connect=shim.connect)


async def settle():
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_shim_that_dies_while_it_is_asked_makes_one_new_connection(shim):
    asked = []

    async def die_the_second_time(client):
        asked.append(client)
        if len(asked) == 2:
            shim.disconnect()
            await settle()

    link = link_to(shim, die_the_second_time)
    await link.open()
    shim.disconnect()
    async with asyncio.timeout(PATIENCE):
        client = await link.client()
    await settle()
    assert shim.connected == [client]
    assert len(asked) == 3
    await link.close()


async def test_a_dead_connection_is_not_given_out(shim):
    async def die(_client):
        shim.disconnect()

    link = link_to(shim, die)
    with pytest.raises(ShimUnavailable):
        await link.open()
    await link.close()


async def test_a_connection_that_could_not_be_used_is_closed(shim):
    async def fail(_client):
        raise RuntimeError("a mistake")

    link = link_to(shim, fail)
    with pytest.raises(RuntimeError):
        await link.open()
    assert shim.connected == []
    await link.close()


async def test_a_closed_link_gives_out_nothing_and_does_not_come_back(shim):
    async def accept(_client):
        pass

    link = link_to(shim, accept)
    await link.open()
    await link.close()
    shim.disconnect()
    await settle()
    assert len(shim.clients) == 1
    with pytest.raises(ShimUnavailable):
        await link.client()


async def test_closing_while_no_shim_can_be_reached_ends_the_attempts(shim):
    async def accept(_client):
        pass

    link = link_to(shim, accept)
    await link.open()
    shim.unreachable = 1000
    shim.disconnect()
    await settle()
    async with asyncio.timeout(PATIENCE):
        await link.close()
