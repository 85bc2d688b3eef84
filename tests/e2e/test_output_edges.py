"""Followers at the edges of a job's life, and outputs of odd sizes and contents."""

import asyncio
import hashlib
import os
import signal
import sys

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.shim import signal_shim
from tests.support.waiting import until

STDOUT, STDERR = pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR
RUNNING = pb.StatusDetail(status=pb.STATUS_RUNNING, exit_code=-1)


def python(script, *args, **fields):
    return pb.StartRequest(
        command=pb.Command(name=sys.executable, args=["-ISc", script, *args]), **fields
    )


async def read(client, job_id, **how):
    """Return a job's output to its end, without a gap, and the end."""
    how = {"tail": True, **how}
    messages = [message async for message in client.output(job_id, **how)]
    expected = how.get("offset", 0)
    for message in messages:
        assert message.offset == expected
        expected += len(message.output)
    return b"".join(message.output for message in messages), messages[-1].end


async def end_of(client, job_id):
    while not (status := (await client.status(job_id)).status).reason:
        await asyncio.sleep(0.01)
    return status


async def test_a_follower_that_joins_before_the_first_byte_gets_it(server, gate):
    async with server().client() as client:
        job_id = (await client.start(sh(f"{gate.wait}; printf first"))).job_id
        follower = asyncio.create_task(read(client, job_id))
        late = asyncio.create_task(read(client, job_id, offset=2))
        assert await read(client, job_id, tail=False) == (b"", pb.OutputEnd(status=RUNNING))
        gate.open()
        assert (await follower)[0] == b"first"
        assert (await late)[0] == b"rst"


async def test_one_that_joins_between_the_main_process_and_the_end_gets_every_byte(server):
    """Many, at moments that cover the time from the exit to the publication and beyond."""
    async with server().client() as client:

        async def one(number):
            text = f"{number:03}" * 100
            started = await client.start(sh(f"printf {text}; exec 1>&- 2>&-; exit {number}"))
            for _ in range(number * 7):
                await asyncio.sleep(0)
            content, end = await read(client, started.job_id)
            assert content.decode() == text
            assert (end.size, end.status.exit_code) == (300, number)

        for batch in range(0, 96, 8):
            await asyncio.gather(*(one(number) for number in range(batch, batch + 8)))


async def test_one_that_joins_after_the_end_gets_everything_with_and_without_tail(server):
    async with server().client() as client:
        job_id = (await client.start(sh("printf all; exit 3"))).job_id
        await end_of(client, job_id)
        for tail in (True, False):
            content, end = await read(client, job_id, tail=tail)
            assert (content, end.size, end.status.exit_code) == (b"all", 3, 3)
            content, end = await read(client, job_id, tail=tail, offset=2)
            assert (content, end.size) == (b"l", 3)


async def test_what_grandchildren_write_after_the_main_process_until_they_are_killed_arrives(
    server, tmp_path
):
    """They hold standard output open, in a session of their own, and end by the job's end alone."""
    for number in "123":
        os.mkfifo(tmp_path / f"ready{number}")
    loop = f"echo here > {tmp_path}/ready$0; while :; do echo $0; done"
    script = (
        f"for n in 1 2 3; do setsid sh -c '{loop}' $n & done; "
        f"for n in 1 2 3; do read _ < {tmp_path}/ready$n; done; echo main"
    )
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(script))).job_id
        content, end = await read(client, job_id)
        assert b"main\n" in content
        assert content == (running.log_dir / job_id / "output").read_bytes()
        assert end.size == len(content)
        assert end.status.exit_code == 0


async def test_every_power_of_two_and_its_neighbours_arrive_to_the_byte(server):
    """2^n - 1, 2^n and 2^n + 1 bytes for n from 0 to 24, by their hashes."""
    sizes = sorted({2**power + more for power in range(25) for more in (-1, 0, 1)})
    script = (
        "import hashlib, os, sys\n"
        "block = hashlib.shake_128(sys.argv[1].encode()).digest(4096)\n"
        "left = int(sys.argv[1])\n"
        "while left:\n"
        "    left -= os.write(1, (block * 256)[: min(left, 1 << 20)])\n"
    )
    async with server().client() as client:

        async def one(size):
            job_id = (await client.start(python(script, str(size)))).job_id
            content, end = await read(client, job_id)
            assert end.size == len(content) == size
            block = hashlib.shake_128(str(size).encode()).digest(4096)
            expected = (block * (size // 4096 + 1))[:size]
            assert hashlib.sha256(content).digest() == hashlib.sha256(expected).digest()
            again, _ = await read(client, job_id, offset=size // 2, tail=False)
            assert again == expected[size // 2 :]

        for first in range(0, len(sizes), 4):
            await asyncio.gather(*map(one, sizes[first : first + 4]))


async def test_bytes_that_are_no_utf8_arrive_as_they_are(server):
    """Cut sequences, overlong ones, surrogates, NUL, every byte there is; through the CLI too."""
    odd = (
        b"\xff\xfe\x00\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80\xe2\x82"
        + bytes(range(256))
        + b"\xf0\x9f"
    )
    script = f"import os; [os.write(1, bytes([each])) for each in {odd!r}]"
    running = server()
    async with running.client() as client:
        job_id = (await client.start(python(script))).job_id
        assert (await read(client, job_id))[0] == odd
    assert (await asyncio.to_thread(running.cli, "output", job_id)).stdout == odd


async def test_a_job_that_cuts_off_its_output_and_writes_less_ends_its_followers(server, gate):
    script = f"echo before; {gate.wait}; : > /proc/$$/fd/1; printf new"
    async with server().client() as client:
        job_id = (await client.start(sh(script))).job_id
        received = b""
        async for message in client.output(job_id, tail=True):
            received += message.output
            if received == b"before\n":
                gate.open()
        assert received.startswith(b"before\n")
        content, end = await read(client, job_id)
        assert (content, end.size) == (b"new", 3)


async def test_a_job_that_cuts_off_its_output_and_writes_more_goes_on_where_it_was(server, gate):
    script = f"printf 0123; {gate.wait}; : > /proc/$$/fd/1; printf abcdefgh"
    async with server().client() as client:
        job_id = (await client.start(sh(script))).job_id
        received = b""
        async for message in client.output(job_id, tail=True):
            received += message.output
            if received == b"0123":
                gate.open()
        assert received == b"0123efgh"


async def test_a_job_that_reopens_its_output_appends_or_overwrites_as_it_says(server):
    script = (
        "printf 12345678; exec 1>>/proc/$$/fd/1; printf 9; exec 3<>/proc/$$/fd/1; printf AB >&3"
    )
    async with server().client() as client:
        job_id = (await client.start(sh(script))).job_id
        await end_of(client, job_id)
        assert (await read(client, job_id))[0] == b"AB3456789"


async def test_a_capped_job_that_cuts_off_its_output_keeps_its_newest_bytes(server):
    script = (
        "head -c 3000000 /dev/zero; : > /proc/$$/fd/1;"
        " head -c 100000 /dev/zero | tr '\\0' a; printf end"
    )
    async with server().client() as client:
        job_id = (await client.start(sh(script, output_max_bytes=65536))).job_id
        await end_of(client, job_id)
        messages = [message async for message in client.output(job_id)]
        assert messages[-1].end.size == 100_003
        assert messages[0].offset == 100_003 - 65536
        assert b"".join(m.output for m in messages) == b"a" * (65536 - 3) + b"end"


# Separate streams


async def test_separate_streams_have_each_its_own_bytes_offsets_and_end(server, gate):
    script = f"printf out; printf error >&2; {gate.wait}; printf more; printf s >&2; exit 4"
    running = server()
    async with running.client() as client:
        job_id = (await client.start(sh(script, split_stderr=True))).job_id
        followers = [
            asyncio.create_task(read(client, job_id, stream=stream)) for stream in (STDOUT, STDERR)
        ]

        async def sizes():
            job = (await client.status(job_id)).job
            return (job.output_size, job.stderr_size)

        while await sizes() != (3, 5):
            await asyncio.sleep(0.01)
        gate.open()
        (out, out_end), (err, err_end) = await asyncio.gather(*followers)
        assert (out, err) == (b"outmore", b"errors")
        assert (out_end.size, err_end.size) == (7, 6)
        assert out_end.status == err_end.status
        assert await sizes() == (7, 6)
        assert (await read(client, job_id))[0] == b"outmore"
        assert (await read(client, job_id, stream=STDERR, offset=5, tail=False))[0] == b"s"
    running.restart()
    async with running.client() as client:
        assert await sizes_of(client, job_id) == (7, 6)
        assert (await read(client, job_id, stream=STDERR))[0] == b"errors"


async def sizes_of(client, job_id):
    job = (await client.status(job_id)).job
    return job.output_size, job.stderr_size


async def test_standard_error_alone_of_a_job_that_does_not_keep_it_apart_is_refused(server):
    async with server().client() as client:
        job_id = (await client.start(sh("echo x >&2"))).job_id
        for stream, code in (
            (STDERR, grpc.StatusCode.FAILED_PRECONDITION),
            (7, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await read(client, job_id, stream=stream)
            assert error.value.code() is code
        assert (await read(client, job_id, stream=STDOUT))[0] == b"x\n"
        assert not (await client.status(job_id)).job.HasField("stderr_size")


async def test_a_stream_that_has_gone_silent_ends_with_the_job(server, gate):
    async with server().client() as client:
        job_id = (await client.start(sh(f"echo x >&2; {gate.wait}", split_stderr=True))).job_id
        messages = client.output(job_id, tail=True, stream=STDERR)
        assert (await anext(messages)).output == b"x\n"
        gate.open()
        last = await anext(messages)
        assert (last.end.size, last.end.status.status) == (2, pb.STATUS_EXITED)
        await messages.aclose()


@pytest.mark.parametrize("command", ["output", "run"])
async def test_the_cli_writes_each_stream_to_its_own_descriptor(server, command):
    running = server()
    script = "i=0; while [ $i -lt 500 ]; do echo o$i; echo e$i >&2; i=$((i + 1)); done"
    job = ["--split-stderr", "sh", "-c", script]
    if command == "run":
        result = await asyncio.to_thread(running.cli, "run", *job)
    else:
        job_id = (await asyncio.to_thread(running.cli, "start", *job)).stdout.decode().strip()
        result = await asyncio.to_thread(running.cli, "output", "--tail", job_id)
    assert result.returncode == 0
    assert result.stdout == "".join(f"o{number}\n" for number in range(500)).encode()
    assert result.stderr == "".join(f"e{number}\n" for number in range(500)).encode()


async def test_an_orphan_has_both_sizes(server, gate):
    running = server()
    async with running.client() as client:
        script = f"printf out; printf error >&2; {gate.wait}; printf s >&2"
        job_id = (await client.start(sh(script, split_stderr=True))).job_id
        await until(lambda: (running.log_dir / job_id / "stderr").stat().st_size == 5)
        signal_shim(running.run_dir, signal.SIGKILL)
        follower = asyncio.create_task(read(client, job_id, stream=STDERR))
        gate.open()
        assert (await follower)[0] == b"errors"
        assert await sizes_of(client, job_id) == (3, 6)


# After removal


async def test_the_output_of_a_removed_job_is_not_found_and_both_files_are_gone(server):
    running = server()
    async with running.client() as client:
        started = await client.start(sh("echo out; echo err >&2", split_stderr=True))
        await end_of(client, started.job_id)
        assert (running.log_dir / started.job_id / "stderr").exists()
        removed = await asyncio.to_thread(running.cli, "remove", started.job_id)
        assert removed.returncode == 0, removed.stderr
        for stream in (STDOUT, STDERR):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await read(client, started.job_id, stream=stream)
            assert error.value.code() is grpc.StatusCode.NOT_FOUND
        await until(lambda: not (running.log_dir / started.job_id).exists())
