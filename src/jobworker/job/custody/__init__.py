"""Who has a live job, and how its end becomes known, whichever process dies meanwhile."""

from jobworker.job.custody.custody import Custody, StartUndecided

__all__ = ["Custody", "StartUndecided"]
