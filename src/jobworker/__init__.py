"""jobworker: a remote execution service for Linux hosts."""

__version__ = "0.1.0"
