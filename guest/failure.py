"""The two ways in which the harness fails, apart from the command in the guest."""


class CannotRun(Exception):
    """Raised when this machine cannot run a guest; says what is missing and how to get it."""


class GuestFailed(Exception):
    """Raised when a guest was started and did not bring back a report."""
