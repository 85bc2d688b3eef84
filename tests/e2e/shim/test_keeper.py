"""The keeper: what becomes of the jobs of a shim that is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobworker.shim import note as notes
from jobworker.shim.proc import children, read_stat
from tests.support.full_directory import full_directory
from tests.support.jobs import Gate
from tests.support.processes import alive
from tests.support.shim import keepers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Host, Job

    from jobworker.shim import Client
    from jobworker.shim.note import EndNote


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


async def keeper_of(host: Host) -> int:
    """Return the keeper, once it is one: it has forked the shim before it does all the rest."""
    await host.until(lambda: len(keepers(host.run_dir)) == 1)
    (keeper,) = keepers(host.run_dir)
    await host.until(lambda: len(held_by(keeper)) == 2)
    return keeper


def held_by(pid: int) -> set[str]:
    """Return the files that a process has open."""
    held = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.add(str(each.readlink()))
    return held


def noted(host: Host) -> list[int]:
    """Return the pids of all that was noted but the shim."""
    pids = [int(name.partition(".")[0]) for name in notes.note_names(str(host.run_dir))]
    return [pid for pid in pids if pid != host.shim_pid()]


async def kill_shim(host: Host) -> None:
    pid = host.shim_pid()
    host.signal_shim(signal.SIGKILL)
    await host.until(lambda: not alive(pid))


async def note_of(host: Host, job: Job) -> EndNote:
    name = notes.note_name(job.launched.pid, job.launched.start_time)
    await host.until((host.run_dir / notes.DIRECTORY / name).exists)
    note = notes.read_note(str(host.run_dir), name)
    assert note is not None
    return note


@pytest.mark.parametrize(
    ("command", "end"), [("exit 7", (7, None)), ("kill -KILL $$", (None, 9)), ("exit 0", (0, None))]
)
async def test_the_end_of_a_job_whose_shim_was_killed_is_noted(
    host: Host, client: Client, gate: Gate, command: str, end: tuple[int | None, int | None]
) -> None:
    job = await host.launch(client, "sh", "-c", f"{gate.wait}; {command}")
    await kill_shim(host)
    gate.open()
    note = await note_of(host, job)
    assert (note.exit_code, note.signal) == end
    assert note.executed
    assert note.is_of(job.id)
    await host.until(lambda: not keepers(host.run_dir))


async def test_an_end_that_the_shim_did_not_come_to_write_down_is_noted(
    host: Host, client: Client, gate: Gate
) -> None:
    job = await host.launch(client, "sh", "-c", f"{gate.wait}; exit 5")
    host.signal_shim(signal.SIGSTOP)
    gate.open()
    await host.until(lambda: not alive(job.launched.pid))
    host.signal_shim(signal.SIGKILL)
    assert (await note_of(host, job)).exit_code == 5


async def test_an_end_that_cannot_be_written_down_is_noted_when_the_shim_is_killed(
    host: Host, client: Client, gate: Gate
) -> None:
    job_id = str(uuid.uuid4())
    with full_directory(host.log_dir / job_id):
        job = await host.launch(client, "sh", "-c", f"{gate.wait}; exit 9", job_id=job_id)
        gate.open()
        await host.ended(job)
        await kill_shim(host)
        assert (await note_of(host, job)).exit_code == 9


async def test_a_killed_shim_is_reaped_after_the_ends_it_leaves_were_noted(
    host: Host, client: Client, gate: Gate
) -> None:
    jobs = [await host.launch(client, "sh", "-c", f"{gate.wait}; exit 3") for _ in range(20)]
    pid = host.shim_pid()
    host.signal_shim(signal.SIGSTOP)
    gate.open()
    for job in jobs:
        await host.until(lambda job=job: not alive(job.launched.pid))
    host.signal_shim(signal.SIGKILL)
    await host.until(lambda: read_stat(pid) is None)
    assert len(noted(host)) == 20


async def test_what_jobs_leave_behind_is_reaped_and_not_noted(host: Host, client: Client) -> None:
    keeper = await keeper_of(host)
    script = "for each in 1 2 3; do (sleep 0 & exec sleep 0) & done; wait; exit 1"
    _, record = await host.run(client, "sh", "-c", script)
    assert record.exit_code == 1
    await host.until(lambda: children(keeper) == [host.shim_pid()])
    assert list(notes.note_names(str(host.run_dir))) == []


async def test_only_main_processes_are_noted_after_the_shim_has_died(
    host: Host, client: Client, gate: Gate
) -> None:
    keeper = await keeper_of(host)
    script = f"(sleep 1000 & exec true); {gate.wait}; exit 2"
    job = await host.launch(client, "sh", "-c", script)
    await host.until(lambda: len(children(keeper)) == 2)
    await kill_shim(host)
    gate.open()
    assert (await note_of(host, job)).exit_code == 2
    await host.until(lambda: len(children(keeper)) == 1)  # it reaps what it has noted
    (stray,) = children(keeper)
    os.kill(stray, signal.SIGKILL)  # a child that the keeper has not reaped yet
    await host.until(lambda: not keepers(host.run_dir))
    assert noted(host) == [job.launched.pid]


async def test_signals_do_not_end_the_keeper(host: Host, client: Client, gate: Gate) -> None:
    job = await host.launch(client, "sh", "-c", f"{gate.wait}; exit 4")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
        os.kill(await keeper_of(host), signum)
    await kill_shim(host)
    gate.open()
    assert (await note_of(host, job)).exit_code == 4


async def test_the_keeper_holds_nothing_but_the_log(host: Host, client: Client, gate: Gate) -> None:
    await host.launch(client, "sh", "-c", gate.wait)
    keeper = await keeper_of(host)
    assert held_by(keeper) == {"/dev/null", str(host.run_dir / "shim.log")}
    own = Path("/proc/self/cgroup").read_text()
    assert Path(f"/proc/{keeper}/cgroup").read_text() == own


async def test_a_new_shim_starts_while_the_keeper_of_a_dead_one_waits(
    host: Host, client: Client, gate: Gate
) -> None:
    job = await host.launch(client, "sh", "-c", f"{gate.wait}; exit 6")
    await kill_shim(host)
    _, record = await host.run(await host.connect(), "true")
    assert record.exit_code == 0
    await host.until(lambda: len(keepers(host.run_dir)) == 2)
    gate.open()
    assert (await note_of(host, job)).exit_code == 6


async def test_the_keeper_of_a_run_directory_that_is_gone_reaps_all_the_same(
    host: Host, client: Client, gate: Gate
) -> None:
    job = await host.launch(client, "sh", "-c", gate.wait)
    keeper = await keeper_of(host)
    await kill_shim(host)
    shutil.rmtree(host.run_dir)
    gate.open()
    await host.until(lambda: read_stat(job.launched.pid) is None)
    await host.until(lambda: not alive(keeper))


async def test_a_shim_whose_keeper_was_killed_goes_on(
    host: Host, client: Client, gate: Gate
) -> None:
    job = await host.launch(client, "sh", "-c", f"{gate.wait}; exit 8")
    os.kill(await keeper_of(host), signal.SIGKILL)
    await host.until(lambda: not keepers(host.run_dir))
    gate.open()
    assert (await host.ended(job)).exit_code == 8


async def test_the_keeper_leaves_with_its_shim(host: Host, client: Client) -> None:
    await host.run(client, "true")
    await client.close()
    await host.until(host.shim_is_gone)
    await host.until(lambda: not keepers(host.run_dir))
