"""Snapshots in the cluster's NATS object store: the store that needs no setting. One is kept.

`<name>/data` is the compressed file, `<name>/manifest.json` is written last. Names begin with `snapshots/`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw
import msgspec
import structlog

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.snapshots import copy
from replicated_sqlite_agent.snapshots.copy import Manifest
from replicated_sqlite_agent.stream.errors import ObjectMissing
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_contract import __version__

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PREFIX = "snapshots/"
_MANIFEST = "/manifest.json"


async def take_snapshot(
    session: Session,
    database: Path,
    folder: Path,
    options: CaptureOptions,
    counters: Counters,
    published: Callable[[int], Awaitable[None]],
) -> Manifest:
    """Copy the database, store the copy, write its manifest, remove older ones.

    ``published(clock)`` returns once the stream has everything of this run up to the clock: else the snapshot would
    spread rows that no stream has. Raises AgentError, apsw.Error, OSError; nothing half is ever listed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = f"{PREFIX}{stamp}-{secrets.token_hex(4)}"
    plain, packed = folder / "snapshot.db", folder / "snapshot.zst"
    try:
        view = await asyncio.to_thread(copy.take, database, plain, options)
        progress, vector = view.progress, view.runs.vector()
        await asyncio.to_thread(view.close)
        await asyncio.to_thread(copy.seal, plain)
        digest = await asyncio.to_thread(copy.pack, plain, packed)
        await published(progress.clock)
        await session.object_put(f"{name}/data", packed)
        manifest = Manifest(
            name=name,
            cluster=progress.cluster,
            lineage=progress.lineage or "",
            stream=progress.stream,
            sequence=progress.sequence,
            vector=vector,
            clock=progress.clock,
            run=progress.run,
            bytes=plain.stat().st_size,
            packed_bytes=packed.stat().st_size,
            sha256=digest,
            agent=__version__,
            sqlite=apsw.sqlite_lib_version(),
            taken_ms=time.time_ns() // 1_000_000,
        )
        await session.object_put_bytes(name + _MANIFEST, msgspec.json.encode(manifest))
    finally:
        copy.discard(plain, packed)
    counters.snapshots += 1
    log.info(
        "a snapshot is in the object store", snapshot=name, bytes=manifest.bytes, stored_bytes=manifest.packed_bytes
    )
    await _remove_older(session, name)
    return manifest


async def _remove_older(session: Session, newest: str) -> None:
    for found in await session.object_list(PREFIX):
        if not found.name.startswith(newest) and found.name < newest:
            await session.object_delete(found.name)


async def newest_snapshot(session: Session) -> Manifest | None:
    """The newest snapshot that has a manifest."""
    names = sorted(o.name for o in await session.object_list(PREFIX) if o.name.endswith(_MANIFEST))
    for name in reversed(names):
        try:
            return msgspec.json.decode(await session.object_get_bytes(name), type=Manifest)
        except ObjectMissing:
            continue  # removed meanwhile: a newer one exists or none
    return None


async def fetch_snapshot(session: Session, manifest: Manifest, target: Path) -> None:
    """Bring the database file of a snapshot to ``target``, its digest checked. Raises SnapshotDamagedError."""
    packed = target.with_name(target.name + ".zst")
    try:
        await session.object_get(f"{manifest.name}/data", packed)
        await asyncio.to_thread(copy.unpack, packed, target, manifest.sha256)
    finally:
        copy.discard(packed)
