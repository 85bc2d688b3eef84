"""Output: every byte, for every client, at any time."""

import asyncio
import hashlib
import random
import sys

import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh


def python(script, *args):
    return pb.StartRequest(command=pb.Command(name=sys.executable, args=["-c", script, *args]))


async def read(client, job_id, **how):
    return b"".join([m.output async for m in client.output(job_id, tail=True, **how)])


@pytest.mark.timeout(300)
async def test_a_job_that_prints_and_exits_at_once_loses_no_byte_in_1000_runs(server):
    async with server().client() as client:

        async def one(number):
            text = f"{number:04}" * 25
            started = await client.start(
                pb.StartRequest(command=pb.Command(name="printf", args=["%s", text]))
            )
            messages = [m async for m in client.output(started.job_id, tail=True)]
            content = b"".join(m.output for m in messages).decode()
            assert content == text, f"run {number}"
            assert (messages[-1].end.size, messages[-1].end.status.exit_code) == (100, 0)

        for batch in range(0, 1000, 8):
            await asyncio.gather(*(one(number) for number in range(batch, batch + 8)))


WRITER = """
import os, random, sys, time
source = random.Random(7)
for _ in range(400):
    os.write(1 + source.getrandbits(1), source.randbytes(source.randrange(1, 5000)))
    time.sleep(source.random() / 200)
"""


async def test_50_followers_joining_at_random_moments_get_identical_bytes(server):
    running = server()
    async with running.client() as client:
        job_id = (await client.start(python(WRITER))).job_id

        async def follow(delay):
            await asyncio.sleep(delay)
            async with running.client("user_bravo") as follower:
                return hashlib.sha256(await read(follower, job_id)).digest()

        moments = random.Random(11)
        delays = [moments.uniform(0, 2.5) for _ in range(50)]
        digests = await asyncio.gather(*map(follow, delays))
        content = (running.log_dir / job_id / "output").read_bytes()
        assert len(content) > 400_000
        assert set(digests) == {hashlib.sha256(content).digest()}


async def test_bytes_that_are_no_text_arrive_as_they_are(server):
    script = "import os; os.write(1, bytes(range(256)) * 64); os.write(2, b'\\xff\\x00\\n')"
    async with server().client() as client:
        job_id = (await client.start(python(script))).job_id
        assert await read(client, job_id) == bytes(range(256)) * 64 + b"\xff\x00\n"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1048575, 1048576, 1048577, 5000000])
async def test_sizes_around_those_of_chunks_are_exact(server, size):
    async with server().client() as client:
        job_id = (await client.start(sh(f"head -c {size} /dev/zero"))).job_id
        assert await read(client, job_id) == bytes(size)
        assert await read(client, job_id, offset=size // 2) == bytes(size - size // 2)


async def test_what_grandchildren_write_until_they_are_killed_is_all_there(server):
    script = "setsid -f sh -c 'while :; do echo x; done'; sleep 0.3; echo main"
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(script))).job_id
        content = await read(client, job_id)
        assert b"main\n" in content
        assert content == (running.log_dir / job_id / "output").read_bytes()


async def test_a_follower_that_does_not_read_holds_up_nobody(server, gate):
    running = server()
    async with running.client() as client, running.client() as lazy:
        job_id = (await client.start(sh(f"head -c 20000000 /dev/zero; {gate.wait}"))).job_id
        stalled = lazy.output(job_id, tail=True)
        await anext(stalled)
        gate.open()
        assert len(await read(client, job_id)) == 20_000_000
        assert (await client.status(job_id)).status.status == pb.STATUS_EXITED
        await stalled.aclose()


async def test_a_job_that_truncates_its_own_output_ends_its_followers(server, gate):
    script = f"echo before; {gate.wait}; : > /proc/$$/fd/1; echo after"
    async with server().client() as client:
        job_id = (await client.start(sh(script))).job_id
        content = b""
        async for message in client.output(job_id, tail=True):
            content += message.output
            if content == b"before\n":
                gate.open()
        assert content.startswith(b"before\n")
        assert await read(client, job_id) == b"after\n"
