"""Takes and reads snapshot files. Blocking; runs on a thread of its own with its own connections."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import apsw
import msgspec
import zstandard

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import all_rows, connect, write_transaction
from replicated_sqlite_agent.database.identifiers import PREFIX
from replicated_sqlite_agent.database.own_tables import Runs, read_progress, write_progress
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.replica.state import Replica

_PIECE_BYTES = 1 << 20


class Manifest(msgspec.Struct, omit_defaults=True):
    """What a snapshot is: written last, so a snapshot without one does not exist."""

    name: str
    cluster: str
    lineage: str
    stream: str | None
    sequence: int
    vector: Vector
    clock: int
    run: int
    bytes: int
    """Of the database file."""
    packed_bytes: int
    sha256: str
    """Of the database file."""
    agent: str
    sqlite: str
    taken_ms: int
    version: int = 1


class SnapshotDamagedError(AgentError):
    """A snapshot that is not what its manifest says; it is never used."""


def take(source: Path, target: Path, options: CaptureOptions) -> Replica:
    """Copy a living database to ``target`` and fold the copy; the caller closes the returned view of it.

    The application goes on writing meanwhile. The versions that the fold gives in the copy are those that the living
    file will give: a function of what is stored.
    """
    target.unlink(missing_ok=True)
    live = connect(source)
    copy = apsw.Connection(str(target))
    try:
        with copy.backup("main", live, "main") as backup:
            # One step: a copy in several starts over at each commit and would never end under writes.
            backup.step(-1)
    finally:
        copy.close()
        live.close()
    return Replica.of_copy(target, options, Counters())


def seal(target: Path) -> None:
    """Put everything of the copy into its one file and check it. Raises SnapshotDamagedError."""
    db = connect(target)
    try:
        all_rows(db, "PRAGMA wal_checkpoint(TRUNCATE)")
        check(db, target)
    finally:
        db.close()


def check(db: apsw.Connection, path: Path) -> None:
    """``integrity_check``; CHECK constraints are left out, merged rows may break them."""
    db.pragma("ignore_check_constraints", True)
    result = all_rows(db, "PRAGMA integrity_check(3)")
    if result != [("ok",)]:
        raise SnapshotDamagedError(f"the copy at {path} does not pass SQLite's integrity check: {result[0][0]}")


def pack(source: Path, target: Path) -> str:
    """Compress a file; returns the SHA-256 of the plain one. Memory: one piece."""
    digest = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=1, threads=-1)
    with source.open("rb") as plain, target.open("wb") as out, compressor.stream_writer(out) as packed:
        while piece := plain.read(_PIECE_BYTES):
            digest.update(piece)
            packed.write(piece)
    return digest.hexdigest()


def unpack(source: Path, target: Path, sha256: str) -> None:
    """The inverse of `pack`. Raises SnapshotDamagedError if the content is another one."""
    digest = hashlib.sha256()
    try:
        with source.open("rb") as packed, target.open("wb") as out:
            for piece in zstandard.ZstdDecompressor().read_to_iter(packed, write_size=_PIECE_BYTES):
                digest.update(piece)
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
    except zstandard.ZstdError as error:
        raise SnapshotDamagedError(f"a snapshot cannot be decompressed: {error}") from error
    if digest.hexdigest() != sha256:
        raise SnapshotDamagedError("a snapshot does not have the digest that its manifest names")


def make_fresh(path: Path, node: str) -> None:
    """Turn a restored snapshot into the file of a new member: it has nothing to publish and no former run."""
    db = connect(path)
    try:
        check(db, path)
        with write_transaction(db):
            runs = Runs.read(db)
            progress = read_progress(db)
            runs.advance(
                db, progress.run, progress.clock, {k: v for k, v in runs.vector().items() if k != progress.run}
            )
            db.execute(f"DELETE FROM {PREFIX}log")
            fresh = replace(
                progress,
                run=0,
                node=node,
                folded_seq=0,
                published=progress.clock,
                published_seq=0,
                stretches=(),
                covers={},
                clock_offset=0,
            )
            write_progress(db, fresh)
        all_rows(db, "PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        db.close()


def discard(*paths: Path) -> None:
    """Remove scratch databases and what SQLite put beside them."""
    for path in paths:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
