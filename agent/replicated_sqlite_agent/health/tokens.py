"""Positions as text that fits a URL: base64url without padding of msgpack {run: clock}. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from replicated_sqlite_agent.changes import Vector

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_decoder: Final = msgspec.msgpack.Decoder(dict[_Number, _Number])


def encode(vector: Mapping[int, int]) -> str:
    """The token of a vector. Equal vectors have equal tokens; runs without writes (clock 0) are left out."""
    written = {run: clock for run, clock in sorted(vector.items()) if clock}
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(written)).rstrip(b"=").decode()


def decode(token: str) -> Vector:
    """The vector of a token. Raises ValueError with one sentence if it is none."""
    # b64decode itself skips characters that are not of its alphabet.
    raw = token if _ALPHABET.fullmatch(token) else ""
    try:
        return _decoder.decode(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    except (ValueError, msgspec.DecodeError) as error:
        raise ValueError("the token is damaged; pass it exactly as /v1/position gave it") from error
