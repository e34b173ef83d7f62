"""What travels: groups of row states, cut into chunks. Pure; writing and reading stand side by side.

A *group* is everything one run has to say between two states of its file. Its body is a header frame and block frames;
the body is cut into *chunks*, each one message. A block holds rows of one table, as msgpack or as an SQLite image.
Unknown fields are ignored; a newer major version or an unknown frame is refused as a whole (`NewerFormatError`).

    message  = msgpack Chunk (envelope and a slice of the body)
    body     = frame*            frame = length u32 | kind u8 | payload (zstd if the kind's high bit is set)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec
import zstandard

from replicated_sqlite_agent.changes import RowState, Stretch, Value, Vector, Version
from replicated_sqlite_agent.values import from_wire, to_wire

FORMAT = 1
"""Major version of the wire format."""

HEADER_FRAME, BLOCK_FRAME, _COMPRESSED = 1, 2, 0x80
_FRAME = struct.Struct("<IB")

COMPRESS_ABOVE_BYTES = 1024
"""Smaller frames gain nothing from zstd."""

FRAME_BYTES_MAX = 1 << 30
"""SQLite's own limit of a value is 1e9 bytes; a larger frame is damage."""

ENVELOPE_BYTES = 512
"""Room that the envelope of a chunk needs at most beside its slice of the body."""


class WireError(Exception):
    """A message that cannot be read: damaged, or not of this format."""


class NewerFormatError(WireError):
    """A message of a newer format: its run waits until this agent is upgraded."""


class Chunk(msgspec.Struct, omit_defaults=True):
    """One message: slice ``i`` of ``n`` of the body of a group."""

    v: int
    """Major version of the format."""
    run: int
    group: bytes
    """Random for each encoding, so that two encodings of one group are never mixed."""
    lo: int
    hi: int
    body: bytes
    i: int = 0
    n: int = 1


class Header(msgspec.Struct, omit_defaults=True):
    """What a group says about itself."""

    node: str
    lo: int
    """Clock up to which the run had published before."""
    hi: int
    """Last clock of the group."""
    seq: int = 0
    """Log row of the sender that the group reaches; only the sender itself uses it."""
    stretches: list[tuple[int, Vector]] = []
    covers: dict[int, tuple[int, int]] = {}
    """run -> (lo, hi): with this group, everything of that run between the two has been said."""
    reported: Vector = {}
    """The sender's vector, of its own run what is published."""
    heartbeat: bool = False
    clean: bool = True
    """Heartbeat of a sender that owes nobody a cover."""

    def contexts(self) -> tuple[Stretch, ...]:
        """The stretches as the protocol's type."""
        return tuple(Stretch(clock, seen) for clock, seen in self.stretches)


class Block(msgspec.Struct, omit_defaults=True):
    """Row states of one table.

    A row is ``key…, l, lr, dead, u, ur, x, value…`` with lr and ur as numbers in ``runs``; u is None if the row was not
    written since its life began; x is None or the versions of single columns. A dead row has no values.
    """

    table: str
    digest: bytes
    key: list[str]
    columns: list[str]
    runs: dict[int, int]
    count: int
    rows: list[list[Any]] | None = None
    image: bytes | None = None
    """The same rows as one SQLite database with the table `image_schema`."""


IMAGE_ROWS_MIN = 65
"""From here on an SQLite image is cheaper than msgpack on both sides (about 25 µs fixed cost a side)."""


def image_columns(keys: int, columns: int) -> list[str]:
    """The columns of a row as it travels: key, versions, values."""
    key, values = (f"k{i + 1}" for i in range(keys)), (f"v{i + 1}" for i in range(columns))
    return [*key, "l", "lr", "dead", "u", "ur", "x", *values]


def image_schema(keys: int, columns: int) -> str:
    """The one table of an image. A receiver refuses an image whose schema has any other text."""
    return f"CREATE TABLE r({', '.join(image_columns(keys, columns))})"


_chunk_decoder = msgspec.msgpack.Decoder(Chunk)
_header_decoder = msgspec.msgpack.Decoder(Header)
_block_decoder = msgspec.msgpack.Decoder(Block, ext_hook=from_wire)
_encoder = msgspec.msgpack.Encoder(enc_hook=to_wire)


def encode_frame(content: Header | Block) -> bytes:
    """A frame with its length in front."""
    kind = HEADER_FRAME if isinstance(content, Header) else BLOCK_FRAME
    payload = _encoder.encode(content)
    if len(payload) > COMPRESS_ABOVE_BYTES:
        payload = zstandard.ZstdCompressor(level=1).compress(payload)
        kind |= _COMPRESSED
    return _FRAME.pack(len(payload), kind) + payload


def decode_frames(body: BinaryIO) -> Iterator[Header | Block]:
    """The frames of a whole body, one at a time, so that memory holds one block. Raises WireError."""
    while head := body.read(_FRAME.size):
        if len(head) < _FRAME.size:
            raise WireError("the body ends in the middle of a frame")
        size, kind = _FRAME.unpack(head)
        payload = body.read(size)
        if len(payload) < size:
            raise WireError("the body ends in the middle of a frame")
        yield _decode_frame(kind, payload)


def _decode_frame(kind: int, payload: bytes) -> Header | Block:
    try:
        if kind & _COMPRESSED:
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=FRAME_BYTES_MAX)
        match kind & ~_COMPRESSED:
            case 1:
                return _header_decoder.decode(payload)
            case 2:
                return _block_decoder.decode(payload)
    except (zstandard.ZstdError, msgspec.MsgspecError, ValueError) as error:
        raise WireError(f"a frame cannot be read: {error}") from error
    raise NewerFormatError(f"frame kind {kind} is unknown here")


def encode_chunk(chunk: Chunk) -> bytes:
    """A message."""
    return _encoder.encode(chunk)


def decode_chunk(data: bytes) -> Chunk:
    """The inverse of `encode_chunk`. Raises WireError."""
    try:
        chunk = _chunk_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise WireError(f"a message cannot be read: {error}") from error
    if chunk.v > FORMAT:
        raise NewerFormatError(f"a message has format {chunk.v}, this agent reads {FORMAT}: upgrade this agent")
    if not 0 <= chunk.i < chunk.n:
        raise WireError(f"a message says it is chunk {chunk.i} of {chunk.n}")
    return chunk


def row_to_wire(key: tuple[Value, ...], state: RowState, columns: tuple[str, ...], runs: dict[int, int]) -> list[Value]:
    """A row of a block. ``runs`` maps run numbers to the numbers used in this block."""
    moved = state.alive and state.update != state.life
    x = _encoder.encode({"c": state.columns}) if state.alive and state.columns else None
    head: list[Value] = [
        *key,
        state.life.clock,
        runs[state.life.run],
        int(not state.alive),
        state.update.clock if moved else None,
        runs[state.update.run] if moved else None,
        x,
    ]
    return head + [state.values.get(c) for c in columns] if state.alive else head


def row_from_wire(
    row: list[Any], keys: int, columns: list[str], runs: dict[int, int]
) -> tuple[tuple[Value, ...], RowState]:
    """The inverse of `row_to_wire`; ``runs`` maps the block's numbers to run numbers. Raises WireError."""
    try:
        life_clock, life_run, dead, update_clock, update_run, x = row[keys : keys + 6]
        life = Version(life_clock, runs[life_run])
        update = life if update_clock is None else Version(update_clock, runs[update_run])
        versions = msgspec.msgpack.decode(x, type=dict[str, dict[str, tuple[int, int]]]).get("c", {}) if x else {}
        values = {} if dead else dict(zip(columns, row[keys + 6 :], strict=True))
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise WireError(f"a row cannot be read: {error}") from error
    by_column = {c: Version(*v) for c, v in versions.items()}
    return tuple(row[:keys]), RowState(life, not dead, update, by_column, values)
