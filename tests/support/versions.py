"""``jobworker serve`` as if it were of another version: it and its shim speak another protocol's.

``python -m tests.support.versions VERSION SPEAKS serve …``, where SPEAKS is a list with commas.
"""

from __future__ import annotations

import sys


def pretend(version: int, speaks: set[int]) -> None:
    """Give this process another version, before the modules that use it are loaded."""
    from jobworker.shim import wire  # noqa: PLC0415 - in the shim, of a library found just now

    names: dict[str, object] = {
        "VERSION": version,
        "SPEAKS": frozenset(speaks),
        "SOCKET_NAME": wire.socket_name(version),
        "LOCK_NAME": wire.lock_name(version),
    }
    for name, value in names.items():
        setattr(wire, name, value)


def main() -> None:
    """Run the server."""
    version = int(sys.argv.pop(1))
    speaks = {int(each) for each in sys.argv.pop(1).split(",")}
    pretend(version, speaks)
    from jobworker.daemon.main import main as jobworker  # noqa: PLC0415 - they have it already
    from jobworker.shim import start  # noqa: PLC0415

    here = sys.path[0]
    before, _, rest = start.program().rpartition("from jobworker.shim.main ")
    before += f"sys.path.append({here!r}); from tests.support import versions; "
    before += f"versions.pretend({version}, {speaks}); "
    start.program = lambda: f"{before}from jobworker.shim.main {rest}"
    jobworker()


if __name__ == "__main__":
    main()
