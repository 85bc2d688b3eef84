"""OutputResponse as bytes, cut by hand: a megabyte of output is copied once, not four times. Pure.

The generated class copies the output into a message, the message into its encoding, and on the
other side both again. What is written here is the same encoding (protobuf's wire format: a tag of
field number and wire type, then a varint, or a length and so many bytes), with the offset first, so
that the output ends the message and can be read from its file behind a header. Any protobuf parser
reads it; `decode` takes what any protobuf encoder writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobworker.rpc.v1.jobworker_pb2 import OutputEnd, OutputResponse

if TYPE_CHECKING:
    from typing import Literal

_OUTPUT: Final = 1 << 3 | 2
"""The tag of `output`: field 1, wire type LEN."""
_OFFSET: Final = 2 << 3 | 0
"""The tag of `offset`: field 2, wire type VARINT."""

_CONTINUED: Final = 0x80
_LONGEST_VARINT: Final = 10


class OutputMessage:
    """A message of an Output stream, read like an OutputResponse.

    `view` is the output where it was received, not copied; it keeps the message alive. `gap` is how
    many bytes before this message a cap on the output has dropped since the message before it.
    """

    __slots__ = ("_end", "_output", "gap", "offset", "view")

    def __init__(
        self, offset: int, view: memoryview, end: OutputEnd | None = None, *, gap: int = 0
    ) -> None:
        self.offset = offset
        self.view = view
        self.gap = gap
        self._end = end
        self._output: bytes | None = None

    @property
    def output(self) -> bytes:
        """The output as bytes."""
        if self._output is None:
            self._output = bytes(self.view)
        return self._output

    @property
    def has_end(self) -> bool:
        """Whether this is the last message of the stream."""
        return self._end is not None

    @property
    def end(self) -> OutputEnd:
        """The end of the stream; an empty message if this is not the last one."""
        return OutputEnd() if self._end is None else self._end

    def HasField(self, name: Literal["end"]) -> bool:  # noqa: N802 - protobuf's name
        """Tell whether this is the last message of the stream."""
        if name != "end":
            raise ValueError(f"an output message has no optional field {name!r}")
        return self._end is not None

    def message(self) -> OutputResponse:
        """Return the same as the contract's generated class."""
        return OutputResponse(output=self.output, offset=self.offset, end=self._end)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, OutputMessage):
            other = other.message()
        return self.message() == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        end = f", {self._end!r}" if self._end is not None else ""
        return f"<OutputMessage: {len(self.view)} bytes at {self.offset}{end}>"


def header(offset: int, length: int) -> bytes:
    """Return what `length` bytes of output, from byte `offset`, need in front to be a message."""
    return b"%c%b%c%b" % (_OFFSET, _varint(offset), _OUTPUT, _varint(length))


def decode(frame: bytes) -> OutputMessage:
    """Read a message. Raises google.protobuf.message.DecodeError if it is none."""
    found = _cut(frame)
    if found is None:
        message = OutputResponse.FromString(frame)
        end = message.end if message.HasField("end") else None
        return OutputMessage(message.offset, memoryview(message.output), end)
    offset, begin = found
    return OutputMessage(offset, memoryview(frame)[begin:])


def _cut(frame: bytes) -> tuple[int, int] | None:
    """Return a frame's offset, and where its output begins; None if it is not as `header` has it.

    An offset of 0 may be missing: that is how protobuf encodes a field's default.
    """
    try:
        offset = position = 0
        if frame[0] == _OFFSET:
            offset, position = _read_varint(frame, 1)
        if frame[position] != _OUTPUT:
            return None
        length, position = _read_varint(frame, position + 1)
    except IndexError:
        return None
    if position + length != len(frame) or offset >> 64:
        return None
    return offset, position


def _varint(value: int) -> bytes:
    """Encode a number: seven bits a byte, the lowest first, all but the last with the top bit."""
    encoded = bytearray()
    while value >= _CONTINUED:
        encoded.append(value & 0x7F | _CONTINUED)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode a number; return it and where it ends. Raises IndexError if it does not."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < _CONTINUED:
            return value, position
        shift += 7
        if shift >= 7 * _LONGEST_VARINT:
            raise IndexError(position)
