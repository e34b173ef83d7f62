"""Takes a snapshot of the living database into a repository."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import structlog

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.own_tables import Progress
from replicated_sqlite_agent.snapshots import contents, copy, packing
from replicated_sqlite_agent.snapshots.documents import Identity, Manifest, TableFacts
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.retention import is_smaller
from replicated_sqlite_contract import __version__

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """The living database, and where its copies may lie meanwhile."""

    database: Path
    folder: Path
    options: CaptureOptions
    counters: Counters
    recipients: Sequence[bytes]
    """Public keys; none: not encrypted."""
    now_ms: Callable[[], int]
    """The time that all members share: schedules compare it with what is stored."""
    published: Callable[[int], Awaitable[None]]
    """Returns once the stream has everything of this run up to a clock: else a snapshot would spread rows that no
    stream has."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A sealed copy and what it holds."""

    progress: Progress
    vector: Vector
    tables: dict[str, TableFacts]
    schema: str


async def take_snapshot(source: Source, repository: Repository, *, backup: bool = True) -> Manifest:
    """Copy the database, upload the copy, write its manifest. Nothing half is ever listed.

    ``backup``: claim the place for this cluster, encrypt for the recipients, compare with the last good one. Otherwise
    it lies in the cluster's own store, for others to join from.
    Raises AgentError, apsw.Error, OSError.
    """
    plain, parts = source.folder / "snapshot.db", source.folder / "snapshot.parts"
    now_ms = source.now_ms()
    try:
        made = await asyncio.to_thread(_make_copy, source, plain)
        if backup:
            await repository.claim(_identity(made.progress, now_ms))
        recipients = source.recipients if backup else ()
        packed = await asyncio.to_thread(packing.pack, plain, parts, recipients)
        size = plain.stat().st_size
        copy.discard(plain)
        parent = await repository.best() if backup else None
        await source.published(made.progress.clock)
        former = parent.manifest if parent is not None else None
        manifest = _manifest(made, packed, size, former, encrypted=bool(recipients), now_ms=now_ms)
        await repository.put_parts(manifest.name, packed.parts, parts)
        await repository.put_manifest(manifest)
    finally:
        copy.discard(plain)
        await asyncio.to_thread(shutil.rmtree, parts, ignore_errors=True)
    source.counters.snapshots += 1
    source.counters.snapshot_bytes += manifest.packed_bytes
    facts = {"snapshot": manifest.name, "store": repository.place, "rows": manifest.rows}
    log.info("a snapshot is stored", **facts, bytes=manifest.bytes, stored_bytes=manifest.packed_bytes)
    if manifest.smaller:
        log.warning(
            "a snapshot has less than half of the rows of the last good one: it replaces none; "
            "'rsqlite snapshots accept' says that it is right",
            **facts,
            former=manifest.parent,
        )
    return manifest


def _identity(progress: Progress, now_ms: int) -> Identity:
    return Identity(progress.cluster, progress.lineage or "", progress.node, now_ms)


def _make_copy(source: Source, plain: Path) -> _Copy:
    view = copy.take(source.database, plain, source.options)
    progress, vector = view.progress, view.runs.vector()
    view.close()
    copy.seal(plain)
    db = copy.open_copy(plain)
    try:
        return _Copy(progress, vector, contents.table_facts(db), contents.schema_digest(db))
    finally:
        db.close()


def _manifest(
    made: _Copy, packed: packing.Packed, size: int, parent: Manifest | None, *, encrypted: bool, now_ms: int
) -> Manifest:
    progress = made.progress
    rows = sum(table.rows for table in made.tables.values())
    return Manifest(
        name=f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now_ms // 1000))}-{secrets.token_hex(4)}",
        cluster=progress.cluster,
        lineage=progress.lineage or "",
        node=progress.node,
        stream=progress.stream,
        sequence=progress.sequence,
        vector=made.vector,
        horizon=progress.horizon,
        clock=progress.clock,
        run=progress.run,
        bytes=size,
        sha256=packed.sha256,
        tables=made.tables,
        schema=made.schema,
        integrity="ok",
        packed_bytes=packed.bytes,
        parts=packed.parts,
        encryption="age" if encrypted else None,
        parent=parent.name if parent is not None else None,
        smaller=parent is not None and is_smaller(rows, parent.rows),
        agent=__version__,
        sqlite=apsw.sqlite_lib_version(),
        taken_ms=now_ms,
    )
