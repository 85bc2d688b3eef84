"""Text from elsewhere made fit for a terminal: nothing in it can move the cursor. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def printable(text: str) -> str:
    """Return `text` with everything that a terminal might obey written as an escape."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def quote(argument: str) -> str:
    """Quote one argument as a shell (bash, zsh, ksh) would read it back."""
    if argument.isprintable():
        return shlex.quote(argument)
    body = argument.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(body)}'"


def join(arguments: Iterable[str]) -> str:
    """Quote a command line."""
    return " ".join(quote(argument) for argument in arguments)


def _escape(char: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    if named is not None:
        return named
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
