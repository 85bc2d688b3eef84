"""``python -m bench``: measure, and print the table. Needs root, as the server does."""

from __future__ import annotations

import argparse
import asyncio

from bench import follow, start
from bench.server import running
from bench.table import Figure, markdown


def main() -> None:
    """Run what was asked for against one server."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("only", nargs="?", choices=("start", "follow"), help="one of the parts")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of measurements [7]")
    parser.add_argument("--mib", type=int, default=256, help="size of the output in MiB [256]")
    arguments = parser.parse_args()
    measured: list[Figure] = []
    with running() as server, asyncio.Runner() as runner:
        if arguments.only != "follow":
            measured += start.figures(server, runner, arguments.rounds)
        if arguments.only != "start":
            measured += follow.figures(server, runner, arguments.rounds, arguments.mib)
    print(markdown(measured))


if __name__ == "__main__":
    main()
