"""Jobs: starting, stopping and asking about commands, without knowing of gRPC."""

from jobworker.job.job import Job
from jobworker.job.record import JobRecord
from jobworker.job.service import Change, Service
from jobworker.job.spec import JobSpec, StopPolicy
from jobworker.job.state import JobStatus, Reason, State

__all__ = [
    "Change",
    "Job",
    "JobRecord",
    "JobSpec",
    "JobStatus",
    "Reason",
    "Service",
    "State",
    "StopPolicy",
]
