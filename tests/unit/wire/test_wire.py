"""What travels arrives bit by bit, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicated_sqlite_agent.changes import RawText, RowState, Value, Version
from replicated_sqlite_agent.values import pack_values, unpack_values
from replicated_sqlite_agent.wire import (
    FORMAT,
    Block,
    Chunk,
    Header,
    NewerFormatError,
    WireError,
    decode_chunk,
    decode_frames,
    encode_chunk,
    encode_frame,
    row_from_wire,
    row_to_wire,
)

raw_texts = st.binary(min_size=1).map(lambda b: b"\xff" + b).map(RawText)
values: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    raw_texts,
)
versions = st.builds(Version, st.integers(0, 2**63 - 1), st.integers(0, 2**48 - 1))
COLUMNS = ("a", "b")


def bits(row: tuple[Value, ...]) -> list[object]:
    """Values as something that differs if storage class or any bit does."""
    return [(type(v), struct.pack("<d", v) if isinstance(v, float) else v) for v in row]


@given(st.lists(values).map(tuple))
def test_values_are_exact(row: tuple[Value, ...]) -> None:
    assert bits(unpack_values(pack_values(row))) == bits(row)


@st.composite
def rows(draw: st.DrawFn) -> RowState:
    life = draw(versions)
    if draw(st.booleans()):
        return RowState(life, alive=False, update=life)
    columns = draw(st.dictionaries(st.sampled_from(COLUMNS), versions))
    return RowState(life, True, draw(versions | st.just(life)), columns, {c: draw(values) for c in COLUMNS})


@given(st.lists(values, min_size=1, max_size=3).map(tuple), rows())
def test_a_row_survives_the_way(key: tuple[Value, ...], state: RowState) -> None:
    numbers: dict[int, int] = {}
    for version in state.versions():
        numbers.setdefault(version.run, len(numbers))
    names = [f"k{i}" for i in range(len(key))]
    wire = row_to_wire(key, state, COLUMNS, numbers)
    runs = {number: run for run, number in numbers.items()}
    block = Block("t", b"digest", names, list(COLUMNS), runs, 1, [wire])
    (read,) = decode_frames(io.BytesIO(encode_frame(block)))
    assert isinstance(read, Block)
    assert read.rows is not None
    found, arrived = row_from_wire(read.rows[0], len(key), read.columns, read.runs)
    assert bits(found) == bits(key)
    assert replace(arrived, values={}) == replace(state, values={})
    assert bits(tuple(arrived.values.values())) == bits(tuple(state.values.values()))


@given(st.binary(max_size=4000), st.integers(1, 700))
def test_a_body_can_be_cut_anywhere(body: bytes, size: int) -> None:
    pieces = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [encode_chunk(Chunk(FORMAT, 1, b"g", 0, 1, p, i, len(pieces))) for i, p in enumerate(pieces)]
    assert b"".join(decode_chunk(m).body for m in messages) == body


@given(st.binary(max_size=300))
def test_noise_is_refused_with_one_kind_of_error(noise: bytes) -> None:
    for read in (lambda: decode_chunk(noise), lambda: list(decode_frames(io.BytesIO(noise)))):
        try:
            read()
        except WireError:
            continue


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_frame_is_refused_or_read_as_something_else(position: int, byte: int) -> None:
    frame = bytearray(encode_frame(Header("node", 1, 2, stretches=[(2, {1: 5})], covers={3: (1, 9)})))
    frame[position % len(frame)] = byte
    with contextlib.suppress(WireError):
        list(decode_frames(io.BytesIO(bytes(frame))))


def test_a_large_frame_is_compressed_and_read_again() -> None:
    block = Block("t", b"d", ["k"], ["v"], {0: 1}, 1, [[1, 5, 0, 0, None, None, None, "x" * 100_000]])
    frame = encode_frame(block)
    assert len(frame) < 2_000
    assert list(decode_frames(io.BytesIO(frame))) == [block]


def test_a_newer_format_says_what_to_do() -> None:
    with pytest.raises(NewerFormatError, match="upgrade this agent"):
        decode_chunk(encode_chunk(Chunk(FORMAT + 1, 1, b"g", 0, 1, b"")))


def test_a_chunk_outside_its_group_is_refused() -> None:
    with pytest.raises(WireError, match="chunk 3 of 2"):
        decode_chunk(encode_chunk(Chunk(FORMAT, 1, b"g", 0, 1, b"", 3, 2)))
