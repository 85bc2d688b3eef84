import os
from dataclasses import replace

import pytest

from jobworker.job import processes
from jobworker.job.custody.end_notes import EndNotes
from jobworker.job.record import JobRecord, Process
from jobworker.job.spec import JobSpec
from jobworker.job.state import JobStatus, State
from jobworker.shim.note import DIRECTORY, TEMPORARY, EndNote, note_names, write_note

BOOT = processes.boot_id()


def note(pid=1, boot_id=BOOT, job_id="j"):
    return EndNote(
        boot_id=boot_id,
        pid=pid,
        start_time=10,
        exit_code=0,
        cgroup=f"/jobworker/{job_id}",
        ended_at=1.0,
        ended_boot=1.0,
    )


def job(job_id="j", pid=1):
    process = None if pid is None else Process(boot_id=BOOT, pid=pid, start_time=10)
    return JobRecord(
        id=job_id,
        owner="",
        spec=JobSpec(command="true"),
        created_at=0,
        status=JobStatus(State.PENDING if pid is None else State.RUNNING),
        process=process,
    )


@pytest.fixture
def notes(tmp_path):
    return EndNotes(tmp_path)


def left(tmp_path):
    return sorted(note_names(str(tmp_path)))


def test_a_note_is_found_by_its_process(tmp_path, notes):
    write_note(str(tmp_path), note())
    assert notes.of_process(job().process) == note()
    assert notes.of_process(replace(job().process, start_time=11)) is None


def test_a_note_of_another_boot_is_not_believed(tmp_path, notes):
    write_note(str(tmp_path), note(boot_id="another"))
    assert notes.of_process(job().process) is None
    assert notes.of_job("j") == []


def test_notes_are_found_by_the_job_whose_cgroup_they_name(tmp_path, notes):
    for each in (note(1), note(2), note(3, job_id="other")):
        write_note(str(tmp_path), each)
    assert sorted(each.pid for each in notes.of_job("j")) == [1, 2]


def test_what_is_no_note_counts_as_none(tmp_path, notes):
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / note().name).write_text("garbage")
    assert notes.of_process(job().process) is None
    assert notes.of_job("j") == []


def test_a_note_that_was_used_is_forgotten(tmp_path, notes):
    write_note(str(tmp_path), note())
    notes.forget(job().process)
    assert left(tmp_path) == []
    notes.forget(job().process)


def test_a_sweep_leaves_what_unfinished_jobs_need_and_nothing_else(tmp_path, notes):
    for each in (note(1), note(2), note(3, job_id="p"), note(4, "another", "p")):
        write_note(str(tmp_path), each)
    (tmp_path / DIRECTORY / "garbage").write_text("garbage")
    notes.sweep([job(), job("p", None)])
    assert left(tmp_path) == ["1.10.json", "3.10.json"]
    notes.sweep([])
    assert left(tmp_path) == []


def test_a_sweep_leaves_a_note_that_is_being_written(tmp_path, notes):
    (tmp_path / DIRECTORY).mkdir()
    half = tmp_path / DIRECTORY / f"1.10.json{TEMPORARY}"
    half.touch()
    notes.sweep([])
    assert half.exists()
    os.utime(half, (0, 0))
    notes.sweep([])
    assert not half.exists()


def test_a_note_that_cannot_be_removed_keeps_nobody_from_working(tmp_path, notes):
    (tmp_path / DIRECTORY / note().name).mkdir(parents=True)
    notes.sweep([])
    notes.forget(job().process)
