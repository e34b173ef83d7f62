"""The JSON documents of a store. Each ends with a checksum of all its bytes before: any changed byte is noticed."""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeVar

import msgspec

from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.errors import AgentError

D = TypeVar("D", bound=msgspec.Struct)

_CHECKSUM: Final = b',"checksum":"'
SNAPSHOT_NAME: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)
"""Time (UTC) and a random id: names sort by time."""
PART_NAME: Final = re.compile(r"part-[0-9]{5}", re.ASCII)


class SnapshotDamagedError(AgentError):
    """A snapshot that is not what its manifest says; it is never used."""


class Identity(msgspec.Struct):
    """`cluster.json`: whose snapshots lie under a prefix. Written once."""

    cluster: str
    lineage: str
    """Random id of the cluster's data."""
    node: str
    claimed_ms: int
    version: int = 1


class Part(msgspec.Struct, frozen=True):
    """A piece of the packed file, an object of its own. Sizes in bytes; SHA-256 of what is stored, in hex."""

    name: str
    bytes: int
    sha256: str


class TableFacts(msgspec.Struct, frozen=True):
    """What a table holds: rows, and SHA3-256 of all their values in the order of the key (None: SQLite could not)."""

    rows: int
    digest: str | None


class Manifest(msgspec.Struct):
    """`manifest.json`: what a snapshot is. Written last, so a snapshot without one does not exist."""

    name: str
    cluster: str
    lineage: str
    node: str
    """Who took it."""
    stream: str | None
    sequence: int
    """Everything of this stream up to here is in the file."""
    vector: Vector
    horizon: Vector
    clock: int
    run: int
    bytes: int
    """Of the database file."""
    sha256: str
    """Of the database file."""
    tables: dict[str, TableFacts]
    """The application's tables by name."""
    schema: str
    """SHA-256 of the application's schema."""
    integrity: str
    """Answer of `integrity_check` before the upload."""
    packed_bytes: int
    parts: list[Part]
    """Concatenated they are the zstd-compressed file, inside an age file if `encryption` says so."""
    encryption: str | None
    """None or 'age'."""
    parent: str | None
    """The last good snapshot before, with which the rows were compared."""
    smaller: bool
    """It has less than half of the parent's rows, so it replaces no good snapshot until a person accepts it."""
    agent: str
    sqlite: str
    taken_ms: int
    version: int = 1

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())


class Verification(msgspec.Struct):
    """`verified.json`: the last check of a snapshot."""

    snapshot: str
    ok: bool
    depth: str
    """`content`: restored, and compared with the manifest. `parts`: encrypted, only what is stored was compared."""
    problem: str | None
    verified_ms: int
    took_s: float
    node: str
    version: int = 1


class Acceptance(msgspec.Struct):
    """`accepted.json`: a person says that a much smaller database is right."""

    snapshot: str
    accepted_ms: int
    version: int = 1


def encode(document: msgspec.Struct) -> bytes:
    """The document as JSON whose last member is its checksum."""
    text = msgspec.json.encode(document).removesuffix(b"}")
    return text + _CHECKSUM + hashlib.sha256(text).hexdigest().encode() + b'"}'


def decode(name: str, data: bytes, kind: type[D]) -> D:
    """The inverse of `encode`. Raises SnapshotDamagedError, which names the document."""
    text, _, end = data.rpartition(_CHECKSUM)
    if end != hashlib.sha256(text).hexdigest().encode() + b'"}':
        raise SnapshotDamagedError(f"{name} is damaged: it does not have the checksum at its end")
    try:
        document = msgspec.json.decode(text + b"}", type=kind)
    except msgspec.MsgspecError as error:
        raise SnapshotDamagedError(f"{name} is not what this version understands: {error}") from error
    if document.version != 1:  # type: ignore[attr-defined]
        raise SnapshotDamagedError(f"{name} was written by a newer version; use that one")
    return document
