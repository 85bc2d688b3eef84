"""When Python looks for cycles of objects that nobody needs: not while a program loads its modules.

The shim loads this module. It imports nothing else of jobworker.
"""

from __future__ import annotations

import gc


def put_off() -> None:
    """Look for none until `look_from_now_on`: what is made now, modules and classes, is kept.

    The collector would go through all of it 60 times while the client is loaded. Measured as CPU
    time of ``jobworker-cli status``, medians of alternating runs: 13 to 35 ms of 200 to 340.
    """
    gc.disable()


def look_from_now_on() -> None:
    """Look again, but never at what there is now; nothing happens unless it was put off.

    What is never looked at also stays in pages that are shared with a process that is forked: the
    collector writes into each object that it goes through.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
