"""Jobs: starting, stopping and asking about commands, without knowing of gRPC."""

from jobworker.job.catalog import Entry, Page
from jobworker.job.job import Job
from jobworker.job.news import Change
from jobworker.job.record import JobRecord
from jobworker.job.registry.listing import JobFilter
from jobworker.job.retention import Retention
from jobworker.job.service import Service
from jobworker.job.slots import RunningLimits
from jobworker.job.spec import JobSpec, StopPolicy
from jobworker.job.state import JobStatus, Reason, State

__all__ = [
    "Change",
    "Entry",
    "Job",
    "JobFilter",
    "JobRecord",
    "JobSpec",
    "JobStatus",
    "Page",
    "Reason",
    "Retention",
    "RunningLimits",
    "Service",
    "State",
    "StopPolicy",
]
