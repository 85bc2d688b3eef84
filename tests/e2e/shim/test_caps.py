"""Caps on outputs and separate streams, by a real shim and its real trimmer."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.errors import JobWorkerError
from jobworker.shim import Client, read_exit_record

if TYPE_CHECKING:
    from conftest import Host, Job

CAP = 1024 * 1024
BLOCK = 64 * 1024
"""More than a block of any file system, and than what it may need to find the blocks again."""


def stat(job: Job, name: str = "output") -> tuple[int, int]:
    """Return an output's size, and how many bytes of the disk it takes."""
    status = (job.directory / name).stat()
    return status.st_size, status.st_blocks * 512


def trimmers(host: Host) -> list[int]:
    """Return the children of the shim that have its name: they execute no command."""
    shim = host.shim_pid()
    children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    own = Path(f"/proc/{shim}/cmdline").read_bytes()
    return [int(each) for each in children if _command_line(each) == own]


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # It has been reaped meanwhile.
        return b""


def was_cut(job: Job, name: str = "output") -> bool:
    size, taken = stat(job, name)
    return size > 8 * CAP and taken < size // 2


async def test_output_is_cut_while_the_job_writes_and_nobody_is_connected(
    host: Host, client: Client
) -> None:
    job = await host.launch(client, "yes", output_max_bytes=CAP)
    await client.close()
    await host.until(lambda: was_cut(job))
    client = await host.connect()
    await client.stop(job.id, grace=0)
    record = await host.ended(job)
    size, taken = stat(job)
    assert record.output_size == size
    assert taken <= CAP + BLOCK
    with (job.directory / "output").open("rb") as file:
        file.seek(size - CAP)
        assert file.read() == (b"y\n" * CAP)[size % 2 : size % 2 + CAP]


async def test_both_streams_are_capped_each_for_itself(host: Host, client: Client) -> None:
    script = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2; kill -KILL $$"
    job, record = await host.run(
        client, "sh", "-c", script, output_max_bytes=CAP, split_stderr=True
    )
    assert (record.output_size, record.stderr_size) == (3_000_000, 2_000_000)
    assert all(stat(job, name)[1] <= CAP + BLOCK for name in ("output", "stderr"))


async def test_standard_error_has_its_own_file_only_if_that_is_asked_for(
    host: Host, client: Client
) -> None:
    script = "echo out; echo err >&2"
    job, record = await host.run(client, "sh", "-c", script, split_stderr=True)
    assert (job.output, (job.directory / "stderr").read_bytes()) == (b"out\n", b"err\n")
    assert (record.output_size, record.stderr_size) == (4, 4)
    assert read_exit_record(job.directory) == record
    job, record = await host.run(client, "sh", "-c", script)
    assert job.output == b"out\nerr\n"
    assert (record.output_size, record.stderr_size) == (8, None)


async def test_a_launch_without_a_descriptor_for_its_stderr_is_refused(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = host.open_all
    monkeypatch.setattr(
        host, "open_all", lambda *given, split_stderr: make(*given, split_stderr=not split_stderr)
    )
    for split in (True, False):
        with pytest.raises(JobWorkerError, match="launch needs"):
            await host.launch(client, "true", split_stderr=split)


async def test_there_is_one_trimmer_for_all_jobs_and_none_without_a_cap(
    host: Host, client: Client
) -> None:
    await host.launch(client, "sleep", "1000")
    assert trimmers(host) == []
    for _ in range(3):
        await host.launch(client, "sleep", "1000", output_max_bytes=CAP)
    assert len(trimmers(host)) == 1


async def test_a_trimmer_that_was_killed_is_replaced(host: Host, client: Client) -> None:
    job = await host.launch(
        client, "sh", "-c", "read go < go; yes", output_max_bytes=CAP,
        working_directory=make_fifo(host),
    )  # fmt: skip
    (first,) = trimmers(host)
    os.kill(first, signal.SIGKILL)
    await host.until(lambda: trimmers(host) not in ([], [first]))
    (host.log_dir / "go").write_text("go\n")
    await host.until(lambda: was_cut(job))
    await client.stop(job.id, grace=0)
    await host.ended(job)


def make_fifo(host: Host) -> str:
    os.mkfifo(host.log_dir / "go")
    return str(host.log_dir)


async def test_the_trimmer_holds_nothing_of_the_shim_and_dies_with_it(
    host: Host, client: Client
) -> None:
    job = await host.launch(client, "sleep", "1000", output_max_bytes=CAP)
    (trimmer,) = trimmers(host)

    def descriptors() -> list[str]:
        names = []
        for link in Path(f"/proc/{trimmer}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is closing what it has inherited
                names.append(str(link.readlink()).partition(":")[0])
        return sorted(names)

    log = str(host.run_dir / "shim.log")
    its = ["/dev/null", log, log, "anon_inode", "socket", str(job.directory / "output")]
    await host.until(lambda: descriptors() == sorted(its))
    pidfd = os.pidfd_open(trimmer)
    try:
        host.signal_shim(signal.SIGKILL)
        await host.until(lambda: has_ended(pidfd))
        await host.until(lambda: not Path(f"/proc/{trimmer}").exists())
        notes = [path.name for path in (host.run_dir / "reaped").glob("*.json")]
        assert not [name for name in notes if name.startswith(f"{trimmer}.")]
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
