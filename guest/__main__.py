"""Runs a command, or a shell, on a Linux kernel with every cgroup controller, in a virtual machine.

The guest sees the files of the host, and what it writes is gone with it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from guest.acceleration import EMULATION, accelerator
from guest.cache import Cache
from guest.failure import CannotRun, GuestFailed
from guest.machine import OUTPUT, Guest

FAILED = 125
"""Our exit status when there is none of the command's own."""


def main() -> int:
    """Do what the command line says; return the exit status of the command in the guest."""
    signal.signal(signal.SIGTERM, _terminate)
    arguments = _parse()
    try:
        cache = Cache.filled()
        guest = Guest(cache, accelerator(cache))
        return _shell(guest) if arguments.action == "shell" else _run(guest, arguments)
    except CannotRun as error:
        print(f"guest: cannot run a guest on this machine: {error}", file=sys.stderr)
    except GuestFailed as error:
        print(f"guest: {error}", file=sys.stderr)
    return FAILED


def _terminate(_signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m guest", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("shell", help="open a shell in a guest, on this terminal")
    run = actions.add_parser(
        "run",
        help="run a command in a guest; exits as the command does, or with 125 if the guest failed",
    )
    run.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="a directory for the files that the command leaves in $GUEST_OUTPUT",
    )
    run.add_argument(
        "--time-limit",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="end the guest after that time; 900 by default",
    )
    run.add_argument("command", nargs="+", help="what to run, in the directory of the checkout")
    arguments = parser.parse_args()
    if arguments.action == "shell" and not sys.stdin.isatty():
        parser.error("a shell needs a terminal; for a command there is: python -m guest run")
    return arguments


def _shell(guest: Guest) -> int:
    print(
        "A shell in a guest. It sees the host's files but for /tmp and /run, which are its own\n"
        "(this checkout is there); what it writes is lost at its end.\n"
        "`exit` leaves it; Ctrl-A X does too if it hangs. The scratch disk is /dev/vda."
    )
    width, height = shutil.get_terminal_size()
    prepare = f'stty rows {height} cols {width}; exec "${{SHELL:-/bin/sh}}"'
    guest.shell(["/bin/sh", "-c", prepare])
    return 0


def _run(guest: Guest, arguments: argparse.Namespace) -> int:
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))
    if not sys.stdout.isatty():
        os.environ["TERM"] = "dumb"
    started = time.monotonic()
    report = guest.run(arguments.command, time_limit=arguments.time_limit, show=_show)
    how = "emulated" if guest.accelerator == EMULATION else "on KVM"
    print(f"== guest: ended after {time.monotonic() - started:.1f} s ({how})")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, content in report.files.items():
            (arguments.output / name).write_bytes(content)
    elif report.files:
        print(f"guest: files in {OUTPUT} are lost; keep them with --output DIR", file=sys.stderr)
    return report.status


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
