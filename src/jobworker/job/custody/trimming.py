"""Caps on the outputs of orphans: the trimmer died with their shim, so the server cuts them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

from jobworker.errors import JobWorkerError
from jobworker.holes import Capped
from jobworker.output import Stream, open_for_trimming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jobworker.job.record import JobRecord

log = logging.getLogger(__name__)

_SHORTEST: Final = 0.01
_LONGEST: Final = 0.5
"""Seconds between two looks at an output: soon again after one that found something to free."""


@contextlib.asynccontextmanager
async def keep_trimmed(log_dir: Path, record: JobRecord) -> AsyncIterator[None]:
    """Keep the outputs of a live job at their cap until the block ends; then cut them to it.

    Nothing is raised for an output that cannot be cut: the log says so.
    """
    if record.output_max_bytes is None:
        yield
        return
    streams = Stream if record.spec.split_stderr else (Stream.STDOUT,)
    with contextlib.ExitStack() as stack:
        outputs = []
        for stream in streams:
            try:
                fd = open_for_trimming(log_dir, record.id, stream)
            except JobWorkerError:
                log.exception("cannot keep the output of job %s below its cap", record.id)
                continue
            stack.callback(os.close, fd)
            outputs.append(Capped(fd, record.output_max_bytes))
        task = asyncio.create_task(_trim_again_and_again(outputs))
        try:
            yield
        finally:
            task.cancel()
            # A thread that is at it goes on to the end; it must not find the descriptors closed.
            await asyncio.gather(task, return_exceptions=True)
        await _trim(outputs, slack=0)


async def _trim_again_and_again(outputs: list[Capped]) -> None:
    pause = _SHORTEST
    while True:
        freed = await _trim(outputs)
        pause = _SHORTEST if freed else min(pause * 2, _LONGEST)
        await asyncio.sleep(pause)


async def _trim(outputs: list[Capped], slack: int | None = None) -> bool:
    """Free what is beyond the caps, in a thread; return whether there was something."""

    def trim() -> bool:
        before = [output.freed for output in outputs]
        for output in outputs:
            output.trim(slack=slack)
        return before != [output.freed for output in outputs]

    thread = asyncio.ensure_future(asyncio.to_thread(trim))
    try:
        return await asyncio.shield(thread)
    except OSError:
        log.exception("cannot free the head of an output")
        return False
    except asyncio.CancelledError:
        await asyncio.gather(thread, return_exceptions=True)
        raise
