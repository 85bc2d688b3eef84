"""The program `jobworker`: configuration, start, signals, shutdown."""
