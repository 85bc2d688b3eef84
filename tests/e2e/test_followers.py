"""A thousand followers of one job: each gets every byte."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import AsyncExitStack, aclosing

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb

FOLLOWERS = 1000
CONNECTIONS = 20
SIZE = 300_000

WRITER = f"""
import os, random
source = random.Random(5)
left = {SIZE}
while left:
    data = source.randbytes(min(left, source.randrange(1, 9000)))
    os.write(1, data)
    left -= len(data)
    if source.random() < 0.3:
        open({{gate!r}}).close()
"""


async def digest(client, job_id, offset=0):
    digest = hashlib.sha256()
    async with aclosing(client.output(job_id, tail=True, offset=offset)) as messages:
        async for message in messages:
            digest.update(message.view)
    assert message.end.size == SIZE
    return digest.digest()


@pytest.mark.timeout(300)
async def test_a_thousand_followers_of_one_job_get_the_same_bytes(server, gate):
    running = server()
    script = WRITER.format(gate=str(gate._path))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(running.client()) for _ in range(CONNECTIONS)]
        command = pb.Command(name=sys.executable, args=["-c", script])
        job_id = (await clients[0].start(pb.StartRequest(command=command))).job_id
        # Half of them follow while the job writes, the others come when it has ended.
        first = [
            asyncio.create_task(digest(clients[n % CONNECTIONS], job_id))
            for n in range(FOLLOWERS // 2)
        ]
        await asyncio.sleep(0)
        gate.open()
        digests = await asyncio.gather(*first)
        digests += await asyncio.gather(
            *(digest(clients[n % CONNECTIONS], job_id) for n in range(FOLLOWERS // 2))
        )
        content = (running.log_dir / job_id / "output").read_bytes()
    assert len(content) == SIZE
    assert len(digests) == FOLLOWERS
    assert set(digests) == {hashlib.sha256(content).digest()}


@pytest.mark.timeout(120)
async def test_followers_that_stand_still_hold_up_nobody_and_get_the_rest_later(server):
    running = server()
    size = 4_000_000
    async with AsyncExitStack() as stack:
        lazy = await stack.enter_async_context(running.client())
        reader = await stack.enter_async_context(running.client())
        command = pb.Command(name="head", args=["-c", str(size), "/dev/urandom"])
        job_id = (await reader.start(pb.StartRequest(command=command))).job_id
        stalled = []
        for _ in range(100):
            stream = await stack.enter_async_context(aclosing(lazy.output(job_id, tail=True)))
            first = await anext(stream)
            stalled.append((stream, hashlib.sha256(first.view)))
        whole = b"".join([m.output async for m in reader.output(job_id, tail=True)])
        assert len(whole) == size
        for stream, digest in stalled[:10]:
            async for message in stream:
                digest.update(message.view)
            assert digest.digest() == hashlib.sha256(whole).digest()
