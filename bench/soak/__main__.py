"""``python -m bench.soak``: run one, print what happened, and fail if anything was wrong."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from contextlib import aclosing

from bench.processes import descriptors
from bench.server import Server, running
from bench.soak import world as machine
from bench.soak.actors import Soak
from bench.soak.tally import Tally
from bench.soak.verdict import judge
from jobworker.rpc.v1 import jobworker_pb2 as pb


def main() -> None:
    """Soak a server of its own, and exit with 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long [20]")
    parser.add_argument("--seed", type=int, default=1, help="what the plans are drawn from [1]")
    parser.add_argument("--clients", type=int, default=8, help="jobs at a time [8]")
    arguments = parser.parse_args()
    print(f"soaking for {arguments.minutes:g} min with the seed {arguments.seed}", flush=True)
    began = time.monotonic()
    with running() as server:
        tally = asyncio.run(
            _soak(server, arguments.minutes * 60, arguments.seed, arguments.clients)
        )
    print(f"took {(time.monotonic() - began) / 60:.1f} min\n{tally.report()}")
    sys.exit(1 if tally.violations else 0)


async def _soak(server: Server, seconds: float, seed: int, clients: int) -> Tally:
    tally = Tally()
    ran = server.directory / "ran"
    ran.mkdir()
    async with server.client() as client:
        async with aclosing(client.list_jobs(pb.ListRequest())) as jobs:
            assert not [each async for each in jobs]  # connects
        soak = Soak(
            world=machine.World(server),
            client=client,
            random=random.Random(seed),  # noqa: S311 - it has to be the same again
            tally=tally,
            ran=ran,
            idle_descriptors=descriptors(server.pid),
        )
        watching = asyncio.create_task(soak.watch())
        actors = [asyncio.create_task(soak.start_jobs()) for _ in range(clients)]
        actors.append(asyncio.create_task(soak.kill()))
        try:
            await asyncio.wait(actors, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            soak.stopping.set()
            await asyncio.gather(*actors)
            await judge(soak)
        finally:
            for task in (watching, *actors):
                task.cancel()
            await asyncio.gather(watching, *actors, return_exceptions=True)
    return tally


if __name__ == "__main__":
    main()
