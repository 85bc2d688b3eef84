"""Caps on outputs: the newest bytes stay, the disk does not fill, no reader gets a wrong byte."""

import asyncio
import signal
import statistics
import subprocess
from pathlib import Path

import grpc
import pytest

from jobworker.rpc.v1 import jobworker_pb2 as pb
from tests.support.jobs import sh
from tests.support.shim import shim_pid, signal_shim
from tests.support.waiting import until, wait_until

MIB = 1024 * 1024
CAP = MIB
NO_CAP = 2**64 - 1
BLOCK = 64 * 1024
"""More than a block of any file system, and than what it may need to find the blocks again."""

YES = pb.Command(name="yes")


class Reader:
    """Follows the output of `yes`: what it got is right where it says that it is."""

    def __init__(self):
        self.offset = 0
        self.jumps = 0
        self.received = 0
        self.end = None

    async def follow(self, client, job_id):
        async for message in client.output(job_id, tail=True):
            if message.output:
                self._take(message.offset, message.output)
            if message.has_end:
                self.end = message.end

    def _take(self, offset, output):
        assert offset >= self.offset
        self.jumps += offset > self.offset
        line = b"y\n" if offset % 2 == 0 else b"\ny"
        assert output == (line * (len(output) // 2 + 1))[: len(output)]
        self.offset = offset + len(output)
        self.received += len(output)


def output_of(running, job_id, name="output"):
    """Return the size of an output, and how many bytes of the disk it takes."""
    status = (running.log_dir / job_id / name).stat()
    return status.st_size, status.st_blocks * 512


def memory(pid):
    """Return the resident memory of a process in bytes (proc(5), VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def processes_of(running):
    """Return the pids of the server, the shim and the trimmer."""
    shim = shim_pid(running.run_dir)
    pids = Path(f"/proc/{shim}/task/{shim}/children").read_text(encoding="ascii").split()
    # It was forked and has executed nothing, unlike the jobs.
    (trimmer,) = [pid for pid in pids if b"shim" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return running.process.pid, shim, int(trimmer)


@pytest.mark.timeout(300)
async def test_endless_output_takes_no_more_of_disk_and_memory_and_readers_get_right_bytes(server):
    running = server()
    async with running.client() as client:
        started = await client.start(pb.StartRequest(command=YES, output_max_bytes=CAP))
        job_id = started.job_id
        readers = [Reader() for _ in range(3)]
        tasks = [asyncio.create_task(each.follow(client, job_id)) for each in readers]
        await until(lambda: output_of(running, job_id)[0] > 50 * MIB)
        pids = processes_of(running)
        before = [memory(pid) for pid in pids]
        taken = []

        def has_written_much():
            size, blocks = output_of(running, job_id)
            taken.append(blocks)
            return size > 300 * MIB and len(taken) > 100

        await until(has_written_much, patience=120)
        after = [memory(pid) for pid in pids]
        await client.stop(job_id, grace=0)
        await asyncio.gather(*tasks)
        status = (await client.status(job_id)).job
    size, blocks = output_of(running, job_id)
    assert status.output_size == size
    assert status.output_max_bytes == CAP
    assert blocks <= CAP + BLOCK
    # How near the cap depends on who gets the processor; without it, this would be the size.
    assert statistics.median(taken) < 100 * MIB
    assert all(now - then < 32 * MIB for then, now in zip(before, after, strict=True))
    for reader in readers:
        assert reader.offset == reader.end.size == size
        assert reader.received >= min(CAP, size)
        assert reader.jumps > 0


async def test_a_finished_job_has_exactly_its_newest_bytes(server):
    running = server()
    # 8 bytes a line, which say where they are.
    script = f"yes '' | head -n {4 * CAP // 8} | awk '{{printf \"%07d\\n\", NR}}'"
    lines = "".join(f"{number + 1:07}\n" for number in range(4 * CAP // 8)).encode()
    async with running.client() as client:
        started = await client.start(sh(script, output_max_bytes=CAP))
        messages = [m async for m in client.output(started.job_id, tail=True, offset=0)]
        assert messages[-1].end.size == len(lines)
        messages = [m async for m in client.output(started.job_id)]
        assert messages[0].offset == 3 * CAP
        assert b"".join(m.output for m in messages) == lines[-CAP:]
        messages = [m async for m in client.output(started.job_id, offset=len(lines) - 10)]
        assert b"".join(m.output for m in messages) == lines[-10:]
        for last in ({"last_bytes": 2 * CAP}, {"last_lines": 2 * CAP}):
            messages = [m async for m in client.output(started.job_id, **last)]
            assert b"".join(m.output for m in messages) == lines[-CAP:]
            assert not any(m.gap for m in messages)
    assert output_of(running, started.job_id)[1] <= CAP + BLOCK


async def test_the_servers_default_counts_unless_a_job_asks_for_another_cap(server):
    running = server("--output-max", "128K")
    async with running.client() as client:

        async def kept(cap):
            script = "head -c 300000 /dev/zero"
            job_id = (await client.start(sh(script, output_max_bytes=cap))).job_id
            [_ async for _ in client.output(job_id, tail=True)]
            messages = [m async for m in client.output(job_id)]
            job = (await client.status(job_id)).job
            return messages[0].offset, job.output_max_bytes, job.output_size

        assert await kept(0) == (300_000 - 131_072, 131_072, 300_000)
        assert await kept(200_000) == (100_000, 200_000, 300_000)
        assert await kept(NO_CAP) == (0, NO_CAP, 300_000)


async def test_a_cap_below_the_smallest_is_refused_by_name(server):
    running = server()
    async with running.client() as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.start(pb.StartRequest(command=YES, output_max_bytes=65_535))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details().startswith("output_max_bytes: ")
    typed = running.cli("start", "--output-max", "1K", "true")
    assert typed.returncode == 2
    assert b"--output-max': '1K' would keep too little" in typed.stderr


@pytest.fixture
def without_holes(tmp_path):
    """A directory on a file system that cannot free a part of a file (ramfs(5))."""
    place = tmp_path / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", place], check=True)
    yield place
    wait_until(
        lambda: subprocess.run(["umount", place], check=False, capture_output=True).returncode == 0
    )


async def test_a_file_system_without_holes_is_found_out_at_the_start(without_holes, server):
    running = server("--log-dir", str(without_holes / "log"))
    async with running.client() as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.start(pb.StartRequest(command=YES, output_max_bytes=CAP))
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        text = error.value.details()
        assert all(part in text for part in (str(without_holes / "log"), "ramfs", "--output-max"))
        assert list((without_holes / "log").iterdir()) == []
        started = await client.start(sh("echo all the same"))
        [*_, end] = [m async for m in client.output(started.job_id, tail=True)]
        assert end.end.size == len("all the same\n")


@pytest.mark.parametrize("killed", ["shim", "both"])
async def test_an_orphans_output_is_kept_at_its_cap_by_the_server(server, killed):
    running = server()
    async with running.client() as client:
        started = await client.start(pb.StartRequest(command=YES, output_max_bytes=CAP))
    if killed == "both":
        running.kill()
    signal_shim(running.run_dir, signal.SIGKILL)
    if killed == "both":
        running.restart()
    size, _ = output_of(running, started.job_id)
    async with running.client() as client:

        def is_cut_again():
            now, taken = output_of(running, started.job_id)
            return now > size + 50 * MIB and taken < (now - size) // 2

        await until(is_cut_again)
        await client.stop(started.job_id, grace=0)
        messages = [m async for m in client.output(started.job_id)]
        size, blocks = output_of(running, started.job_id)
        assert blocks <= CAP + BLOCK
        assert messages[0].offset == size - CAP
        assert messages[-1].end.size == size


async def test_the_cli_says_how_much_was_dropped_and_status_shows_the_cap(server):
    running = server()
    start = running.cli("start", "--output-max", "64K", "head", "-c", "100000", "/dev/zero")
    job_id = start.stdout.decode().strip()
    running.wait_for_end(job_id)
    output = await asyncio.to_thread(running.cli, "output", job_id)
    assert output.stdout == bytes(65_536)
    assert b"34464 bytes of the output are missing, from byte 0 to byte 34464" in output.stderr
    status = await asyncio.to_thread(running.cli, "status", job_id)
    assert b"the newest 64KiB kept" in status.stdout.replace(b"64 KiB", b"64KiB")


async def test_both_streams_of_a_job_are_capped_and_followed(server):
    running = server()
    script = "head -c 200000 /dev/zero; head -c 100000 /dev/zero >&2"
    async with running.client() as client:
        started = await client.start(sh(script, output_max_bytes=BLOCK, split_stderr=True))

        async def follow(stream):
            messages = client.output(started.job_id, tail=True, stream=stream)
            return [message async for message in messages]

        streams = (pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR)
        out, err = await asyncio.gather(*map(follow, streams))
        assert (out[-1].end.size, err[-1].end.size) == (200_000, 100_000)
        job = (await client.status(started.job_id)).job
        assert (job.output_size, job.stderr_size, job.split_stderr) == (200_000, 100_000, True)
    for name in ("output", "stderr"):
        assert output_of(running, started.job_id, name)[1] <= 2 * BLOCK
