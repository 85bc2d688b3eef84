"""What a job leaves behind: its exit record, and perhaps its cgroup."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from jobworker import output, shim
from jobworker.errors import JobWorkerError

if TYPE_CHECKING:
    from pathlib import Path

    from jobworker import cgroups
    from jobworker.job.job import Job

log = logging.getLogger(__name__)


class Remains:
    """What is left of the jobs of a Service."""

    def __init__(self, log_dir: Path, cgroups: cgroups.Service) -> None:
        self._log_dir = log_dir
        self._cgroups = cgroups

    def read_end(self, job: Job) -> tuple[shim.ExitRecord | None, str]:
        """Return a job's exit record, if it is one of this job, and in words what is wrong."""
        try:
            directory = output.open_directory(self._log_dir, job.id)
            if directory is None:
                return None, ""
            try:
                end = shim.read_exit_record(directory)
            finally:
                os.close(directory)
        except (OSError, JobWorkerError) as error:
            log.exception("cannot read the exit record of job %s", job.id)
            return None, f"its exit record cannot be read: {error}"
        process = job.record.process
        if end is None:
            return None, ""
        if end.job_id != job.id or (process is not None and end.pid != process.pid):
            return None, "its exit record is another job's"
        return end, ""

    def remove_cgroup(self, job: Job) -> str:
        """Remove what may be left of a job's cgroup; return in words what went wrong."""
        try:
            self._cgroups.cgroup(job.id).remove()
        except (OSError, ValueError) as error:
            log.exception("cannot remove the cgroup of job %s", job.id)
            return str(error)
        return ""
