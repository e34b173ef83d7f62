"""SQLite values as msgpack: five storage classes and TEXT that is not UTF-8. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from replicated_sqlite_agent.changes import RawText, Value

_RAW_TEXT = 1
"""msgpack extension type of TEXT whose bytes are not valid UTF-8."""


def to_wire(value: Any) -> Any:
    """msgspec hook: RawText as an extension."""
    if isinstance(value, RawText):
        return msgspec.msgpack.Ext(_RAW_TEXT, value.data)
    raise NotImplementedError(f"{type(value).__name__} is no SQLite value")


def from_wire(code: int, data: memoryview) -> Any:
    """msgspec hook: the extension as RawText."""
    if code == _RAW_TEXT:
        return RawText(bytes(data))
    raise ValueError(f"extension type {code} is unknown")


_encoder = msgspec.msgpack.Encoder(enc_hook=to_wire)
_decoder = msgspec.msgpack.Decoder(ext_hook=from_wire)


def pack_values(values: tuple[Value, ...]) -> bytes:
    """A tuple of values, bit-exact."""
    return _encoder.encode(values)


def unpack_values(data: bytes) -> tuple[Value, ...]:
    """The inverse of `pack_values`."""
    return tuple(_decoder.decode(data))


def pack_any(value: Any) -> bytes:
    """A value, or a mapping of column to value."""
    return _encoder.encode(value)


def unpack_any(data: bytes) -> Any:
    """The inverse of `pack_any`."""
    return _decoder.decode(data)
