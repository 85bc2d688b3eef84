"""``python -m bench``: measure, and print the table. Needs root, as the server does."""

from __future__ import annotations

import argparse
import asyncio

from bench import follow, followers, latency, recover, registry, start
from bench.server import running
from bench.table import Figure, markdown
from jobworker import heap

PARTS = ("start", "follow", "latency", "followers", "recover", "registry")


def main() -> None:
    """Run what was asked for against one server."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("only", nargs="?", choices=PARTS, help="one of the parts")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of measurements [7]")
    parser.add_argument("--mib", type=int, default=256, help="size of the output in MiB [256]")
    parser.add_argument(
        "--jobs", type=int, default=1_000_000, help="jobs in the registry [a million]"
    )
    arguments = parser.parse_args()
    heap.keep()  # as the programs do
    measured: list[Figure] = []
    with asyncio.Runner() as runner:
        with running() as server:
            if arguments.only in (None, "start"):
                measured += start.figures(server, runner, arguments.rounds)
            if arguments.only in (None, "follow"):
                measured += follow.figures(server, runner, arguments.rounds, arguments.mib)
            if arguments.only in (None, "latency"):
                measured += latency.figures(server, runner, arguments.rounds)
            if arguments.only in (None, "followers"):
                measured += followers.figures(server, runner, arguments.rounds, arguments.mib)
        if arguments.only in (None, "recover"):
            measured += recover.figures(runner, arguments.rounds)
        if arguments.only in (None, "registry"):
            measured += registry.figures(runner, arguments.rounds, arguments.jobs)
    print(markdown(measured))


if __name__ == "__main__":
    main()
