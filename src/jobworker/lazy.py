"""Packages whose names are loaded when first used (PEP 562), so that nobody loads what others need.

The shim loads this module: it imports nothing unless a name is asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def attach(
    package: str, names: dict[str, object], homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package.

    `names` are the package's globals, `homes` says which of its modules has which name.
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - not for the shim

        names[name] = getattr(import_module(f"{package}.{homes[name]}"), name)
        return names[name]

    def list_names() -> list[str]:
        return sorted({*names, *homes})

    return load, list_names
