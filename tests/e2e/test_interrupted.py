"""A stream that is cut again and again, by the network and by kill -9: no byte is lost."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import aclosing

import pytest

from jobworker.rpc.client import Client
from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.processes import environment
from tests.support.proxy import Proxy
from tests.support.waiting import until

MIB = 1024 * 1024
SIZE = 200 * MIB

pytestmark = pytest.mark.timeout(300)


def through(proxy, server):
    return Client(
        proxy.address,
        cert=server.certs / "user_alpha.crt",
        key=server.certs / "user_alpha.key",
        ca=server.certs / "ca.crt",
    )


async def start(server, size):
    # Fast to make, and no two pieces of a chunk's size alike.
    script = f"yes 'a line of a long output' | nl | head -c {size}"
    async with server.client() as client:
        command = pb.Command(name="sh", args=["-c", script])
        return (await client.start(pb.StartRequest(command=command))).job_id


async def cut_at_random(proxy, source, times, size):
    """Cut the connections so many times, while so many bytes pass; ends with the last cut."""
    for _ in range(times):
        target = proxy.forwarded + source.randrange(size // times)
        await until(lambda target=target: proxy.forwarded >= target, "bytes were forwarded")
        proxy.cut()


async def sha256(client, job_id):
    digest = hashlib.sha256()
    expected = 0
    async with aclosing(client.output(job_id, tail=True)) as messages:
        async for message in messages:
            assert (message.offset, message.gap) == (expected, 0)
            expected += len(message.view)
            digest.update(message.view)
    assert message.end.size == expected
    return digest.hexdigest()


def sha256_of(server, job_id):
    with (server.log_dir / job_id / "output").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_a_client_whose_connection_is_cut_again_and_again_gets_every_byte_once(server):
    running = server()
    job_id = await start(running, SIZE)
    source = random.Random(2026)
    async with Proxy(running.address) as proxy, through(proxy, running) as client:
        cutting = asyncio.create_task(cut_at_random(proxy, source, 8, SIZE * 3 // 4))
        received = await sha256(client, job_id)
        await cutting
        assert proxy.connections > 5
    assert received == sha256_of(running, job_id)


async def test_a_client_whose_server_is_killed_again_and_again_gets_every_byte_once(server):
    running = server()
    job_id = await start(running, SIZE)
    source = random.Random(7)
    async with Proxy(running.address) as proxy, through(proxy, running) as client:
        reading = asyncio.create_task(sha256(client, job_id))
        for _ in range(3):
            target = proxy.forwarded + source.randrange(SIZE // 5)
            await until(lambda target=target: proxy.forwarded >= target, "bytes were forwarded")
            running.kill()
            await asyncio.to_thread(running.restart)
        received = await reading
    assert received == sha256_of(running, job_id)


@pytest.mark.parametrize("piped", [False, True])
async def test_the_program_writes_every_byte_once_whatever_is_cut(server, tmp_path, piped):
    running = server()
    size = SIZE // 4
    job_id = await start(running, size)
    source = random.Random(11)
    async with Proxy(running.address) as proxy:
        arguments = running.cli_command("output", "--tail", job_id)
        arguments[arguments.index(running.address)] = proxy.address
        target = tmp_path / "output"
        with target.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdout=asyncio.subprocess.PIPE if piped else file,
                stderr=asyncio.subprocess.PIPE,
                env=environment(),
            )
            cutting = asyncio.create_task(cut_at_random(proxy, source, 3, size // 2))
            written, messages = await process.communicate()
        await cutting
    assert process.returncode == 0, messages
    content = written if piped else target.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256_of(running, job_id)
