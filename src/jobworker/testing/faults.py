"""Kills the server, the shim or both at a step of `jobworker.steps` that a test has ordered.

``python -m jobworker.testing.faults ORDERS serve …`` is ``jobworker serve …``, but it and the shim
that it starts look into the file ORDERS at each step. `order` writes that file, at any time; it is
gone once the order has been carried out. Nothing of this is in the programs themselves.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time

from jobworker import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SERVER = "server"
SHIM = "shim"
_PATIENCE = 10_000
"""Milliseconds that a killed process may take to be gone."""


def order(
    orders: Path,
    step: str,
    *victims: str,
    run_dir: Path,
    server: int | None = None,
    count: int = 1,
    after: Path | None = None,
) -> None:
    """Have SERVER, SHIM or both killed when `step` is reached for the `count`-th time from now.

    `server` is the server's process, which must not be reaped before; the server itself needs not
    to be told. The shim is found by what it says in `run_dir`. Whoever reaches the step waits there
    until there is something in the file `after`.
    """
    if step not in steps.TABLE:
        raise ValueError(f"there is no step {step!r}")
    order = {"step": step, "victims": victims, "server": server, "count": count}
    where = {"run_dir": str(run_dir), "after": None if after is None else str(after)}
    _write(str(orders), {**order, **where})


def listen(orders: str) -> None:
    """Carry out what the file `orders` says, in this process and its children."""
    steps.listen(lambda name: _look(orders, name))


def _look(orders: str, name: str) -> None:
    try:
        with open(orders) as file:  # noqa: PTH123 - no pathlib in the shim
            order = json.load(file)
    except FileNotFoundError:
        return
    if order["step"] != name:
        return
    if order["count"] > 1:
        _write(orders, {**order, "count": order["count"] - 1})
        return
    os.unlink(orders)  # noqa: PTH108 - as above
    _carry_out(order, name.partition(".")[0])


def _carry_out(order: dict[str, Any], here: str) -> None:
    """Kill the other process first, and wait until it is gone; then this one."""
    victims = order["victims"]
    if order["after"] is not None:
        _wait_for_content(order["after"])
    if SERVER in victims and here != SERVER:
        _kill(order["server"])
    if SHIM in victims and here == "child":
        _kill(os.getppid())
    elif SHIM in victims and here != SHIM:
        _kill_shim(order["run_dir"])
    if here in victims:
        os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_content(path: str) -> None:
    deadline = time.monotonic() + _PATIENCE / 1000
    while time.monotonic() < deadline and not os.stat(path).st_size:  # noqa: PTH116 - as above
        time.sleep(0.002)


def _kill_shim(run_dir: str) -> None:
    """Kill the last shim that served, if it still does."""
    try:
        with open(f"{run_dir}/shim.log") as file:  # noqa: PTH123 - as above
            pid = int(re.findall(r"shim (\d+) serves", file.read())[-1])
        with open(f"/proc/{pid}/cmdline") as file:  # noqa: PTH123 - as above
            is_shim = run_dir in file.read()
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return
    if is_shim:
        _kill(pid)


def _kill(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    gone = select.poll()
    gone.register(pidfd, select.POLLIN)
    gone.poll(_PATIENCE)
    os.close(pidfd)


def _write(orders: str, order: dict[str, Any]) -> None:
    new = f"{orders}.new"
    with open(new, "w") as file:  # noqa: PTH123 - as above
        json.dump(order, file)
    os.rename(new, orders)  # noqa: PTH104 - as above


def main() -> None:
    """Run ``jobworker`` with the arguments after the first, which is the file of orders."""
    from jobworker.daemon.main import main as jobworker  # noqa: PLC0415 - not in the shim
    from jobworker.shim import start  # noqa: PLC0415

    orders = sys.argv.pop(1)
    begin, _, rest = start.program().rpartition("from jobworker.shim.main ")
    shim = f"{begin}from jobworker.testing import faults; faults.listen({orders!r}); "
    start.program = lambda: f"{shim}from jobworker.shim.main {rest}"
    listen(orders)
    jobworker()


if __name__ == "__main__":
    main()
