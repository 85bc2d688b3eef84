"""The program `jobworker-cli`."""
