"""Snapshots in a store: `cluster.json`, and per snapshot a folder with parts, the manifest last, the check beside it.

cluster.json                                        whose prefix this is
snapshots/20261121T160000Z-0a1b2c3d/part-00001      packed bytes, in parts of at most 64 MiB
snapshots/20261121T160000Z-0a1b2c3d/manifest.json   written last: without it there is no snapshot
snapshots/20261121T160000Z-0a1b2c3d/verified.json   the last check
snapshots/20261121T160000Z-0a1b2c3d/accepted.json   a person's word for a much smaller database
"""

from __future__ import annotations

import asyncio
import calendar
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from pathlib import Path
from typing import Final

import structlog

from replicated_sqlite_agent.errors import AgentError, ConfigurationError
from replicated_sqlite_agent.snapshots import copy, packing
from replicated_sqlite_agent.snapshots.contents import table_facts
from replicated_sqlite_agent.snapshots.documents import (
    PART_NAME,
    SNAPSHOT_NAME,
    Acceptance,
    Identity,
    Manifest,
    Part,
    SnapshotDamagedError,
    Verification,
    decode,
    encode,
)
from replicated_sqlite_agent.snapshots.retention import Held, best, to_remove
from replicated_sqlite_agent.snapshots.stores.base import Moved, ObjectAbsentError, ObjectExistsError, Store, unobserved

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_IDENTITY: Final = "cluster.json"
_FOLDER: Final = "snapshots/"
_MANIFEST: Final = "/manifest.json"
_VERIFIED: Final = "/verified.json"
_ACCEPTED: Final = "/accepted.json"

LEFTOVER_S: Final = 24 * 3600.0
"""An upload that has not ended after so long has died."""

_AT_ONCE: Final = 3
"""Parts that move at the same time."""

_ASKED_AT_ONCE: Final = 8
"""Snapshots whose documents are read at the same time."""


class AnotherClusterError(AgentError):
    """The prefix belongs to another cluster; nothing was written."""


class NoSnapshotError(AgentError):
    """The store holds no snapshot that can be used."""


class Repository:
    """The snapshots of one cluster in one store. Raises StoreError where the store does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known: dict[str, Manifest] = {}
        """Manifests that were read for a listing; they are written once."""

    @property
    def place(self) -> str:
        """How sentences call it."""
        return self.store.place

    # ---- whose it is -------------------------------------------------------------------------------------------------

    async def claim(self, identity: Identity) -> None:
        """Make sure that the prefix is this cluster's, before anything is written. Raises AnotherClusterError."""
        found = await self._identity()
        if found is None:
            try:
                await self.store.put_new(_IDENTITY, encode(identity))
                return
            except ObjectExistsError:
                found = await self._identity()
        if found is None or (found.cluster, found.lineage) != (identity.cluster, identity.lineage):
            owner = "another cluster" if found is None else f"cluster {found.cluster} (lineage {found.lineage[:8]})"
            raise AnotherClusterError(
                f"{self.place} holds the snapshots of {owner}, not of {identity.cluster} (lineage "
                f"{identity.lineage[:8]}): give this cluster a prefix of its own; nothing was written"
            )

    async def _identity(self) -> Identity | None:
        try:
            return decode(f"{self.place}/{_IDENTITY}", await self.store.get_bytes(_IDENTITY), Identity)
        except ObjectAbsentError:
            return None

    # ---- what there is -----------------------------------------------------------------------------------------------

    async def held(self) -> list[Held]:
        """Every snapshot that has a manifest, the oldest first."""
        objects = {entry.name for entry in await self.store.find(_FOLDER)}
        names = sorted(name.removeprefix(_FOLDER).removesuffix(_MANIFEST) for name in objects if _is_manifest(name))
        self._known = {name: manifest for name, manifest in self._known.items() if name in names}
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)
        found = await asyncio.gather(*(self._held(name, objects, gate) for name in names))
        # Names tell the second only.
        return sorted((one for one in found if one is not None), key=lambda one: (_taken_ms(one), one.name))

    async def _held(self, name: str, objects: set[str], gate: asyncio.Semaphore) -> Held | None:
        async with gate:
            return await self._read(name, objects)

    async def _read(self, name: str, objects: set[str]) -> Held | None:
        try:
            manifest = self._known[name] = self._known.get(name) or await self.manifest(name)
        except ObjectAbsentError:
            return None  # removed meanwhile
        except SnapshotDamagedError as error:
            return Held(name, None, problem=str(error))
        verification = await self._verification(name) if f"{_FOLDER}{name}{_VERIFIED}" in objects else None
        return Held(name, manifest, verification, accepted=f"{_FOLDER}{name}{_ACCEPTED}" in objects)

    async def _verification(self, name: str) -> Verification | None:
        path = f"{_FOLDER}{name}{_VERIFIED}"
        try:
            return decode(f"{self.place}/{path}", await self.store.get_bytes(path), Verification)
        except (ObjectAbsentError, SnapshotDamagedError):
            return None  # what cannot be read verifies nothing

    async def manifest(self, name: str) -> Manifest:
        """The manifest of one snapshot. Raises SnapshotDamagedError, ObjectAbsentError, ConfigurationError."""
        if SNAPSHOT_NAME.fullmatch(name) is None:
            raise ConfigurationError(f"'{name}' is no name of a snapshot; 'rsqlite snapshots list' shows them")
        path = f"{self.place}/{_FOLDER}{name}{_MANIFEST}"
        manifest = decode(path, await self.store.get_bytes(f"{_FOLDER}{name}{_MANIFEST}"), Manifest)
        if manifest.name != name or not all(PART_NAME.fullmatch(part.name) for part in manifest.parts):
            raise SnapshotDamagedError(f"{path} is not the manifest of this snapshot")
        return manifest

    async def newest_name(self) -> str | None:
        """The name of the newest snapshot that has a manifest."""
        names = [entry.name for entry in await self.store.find(_FOLDER) if _is_manifest(entry.name)]
        return max(names).removeprefix(_FOLDER).removesuffix(_MANIFEST) if names else None

    async def newest(self, refused: Set[str] = frozenset()) -> Manifest | None:
        """The newest snapshot that is neither damaged nor much smaller than one before, nor ``refused`` by name."""
        manifests = [one.manifest for one in await self.held() if one.normal and one.name not in refused]
        return manifests[-1] if manifests else None

    async def best(self) -> Held | None:
        """The newest verified snapshot of ordinary size, else the newest of ordinary size."""
        return best(await self.held())

    async def choose(self, name: str | None) -> Manifest:
        """The named snapshot or the newest usable one. Raises NoSnapshotError with the way out."""
        if name is not None:
            try:
                return await self.manifest(name)
            except ObjectAbsentError as error:
                raise NoSnapshotError(
                    f"{self.place} holds no snapshot {name}; 'rsqlite snapshots list' shows what there is"
                ) from error
        held = await self.held()
        normal = [one.manifest for one in held if one.normal and one.manifest is not None]
        if normal:
            return normal[-1]
        if held:
            raise NoSnapshotError(
                f"{self.place} holds {len(held)} snapshots, all damaged or much smaller than one before them; "
                "'rsqlite snapshots list' shows them, --snapshot NAME takes one by name"
            )
        raise NoSnapshotError(f"{self.place} holds no snapshot; is that the bucket and prefix of `snapshots`?")

    # ---- write -------------------------------------------------------------------------------------------------------

    async def put_parts(self, name: str, parts: Sequence[Part], folder: Path, moved: Moved = unobserved) -> None:
        """Upload the parts that lie in the folder."""

        async def put(part: Part) -> None:
            await self.store.put_file(f"{_FOLDER}{name}/{part.name}", folder / part.name, moved)

        await _some_at_once(parts, put)

    async def put_manifest(self, manifest: Manifest) -> None:
        """Write the manifest: from now on the snapshot exists."""
        await self.store.put_new(f"{_FOLDER}{manifest.name}{_MANIFEST}", encode(manifest))

    async def accept(self, name: str) -> None:
        """A person's word that a much smaller database is right."""
        manifest = await self.choose(name)
        document = Acceptance(manifest.name, time.time_ns() // 1_000_000)
        await self.store.put_bytes(f"{_FOLDER}{name}{_ACCEPTED}", encode(document))

    async def remove(self, name: str) -> None:
        """Remove a snapshot, its manifest first: what is left is none."""
        await self.store.delete(f"{_FOLDER}{name}{_MANIFEST}")
        for entry in await self.store.find(f"{_FOLDER}{name}/"):
            await self.store.delete(entry.name)

    async def prune(self, keep: int | None, max_age_s: float | None, *, dry: bool = False) -> list[str]:
        """Remove what retention does not keep, and what died long ago; returns the snapshots' names."""
        now_ms = time.time_ns() // 1_000_000
        names = to_remove(await self.held(), now_ms, keep, max_age_s)
        if not dry:
            for name in names:
                await self.remove(name)
            await self._remove_unfinished(now_ms)
            await self.store.sweep(LEFTOVER_S)
        return names

    async def _remove_unfinished(self, now_ms: int) -> None:
        """Parts whose manifest never came."""
        objects = [entry.name for entry in await self.store.find(_FOLDER)]
        finished = {name.rpartition("/")[0] for name in objects if name.endswith(_MANIFEST)}
        for name in objects:
            snapshot, _, _ = name.rpartition("/")
            stamp = snapshot.removeprefix(_FOLDER)
            if snapshot in finished or SNAPSHOT_NAME.fullmatch(stamp) is None:
                continue
            if now_ms / 1000 - taken_at(stamp) > LEFTOVER_S:
                await self.store.delete(name)

    # ---- read --------------------------------------------------------------------------------------------------------

    async def fetch_parts(self, manifest: Manifest, folder: Path, moved: Moved = unobserved) -> None:
        """Bring all parts into a folder; those that lie there already, whole, are not fetched again.

        Raises SnapshotDamagedError.
        """
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)

        async def fetch(part: Part) -> None:
            await self._fetch_part(manifest.name, part, folder, moved)

        await _some_at_once(manifest.parts, fetch)

    async def _fetch_part(self, name: str, part: Part, folder: Path, moved: Moved) -> None:
        path = folder / part.name
        if await asyncio.to_thread(packing.has_digest, path, part):
            moved(part.bytes)
            return
        try:
            await self.store.get_file(f"{_FOLDER}{name}/{part.name}", path, moved)
        except ObjectAbsentError as error:
            raise SnapshotDamagedError(f"snapshot {name} in {self.place} is damaged: {part.name} is missing") from error
        if not await asyncio.to_thread(packing.has_digest, path, part):
            raise SnapshotDamagedError(
                f"snapshot {name} in {self.place} is damaged: {part.name} does not have the digest of the manifest; "
                "use an older one"
            )

    async def fetch(
        self, manifest: Manifest, target: Path, identities: Sequence[bytes] = (), moved: Moved = unobserved
    ) -> None:
        """Bring the database file of a snapshot to ``target``, its digest checked.

        The parts lie in `<target>.parts` meanwhile and stay there if a transfer is cut, for the next try.
        Raises SnapshotDamagedError, SealedError, OSError.
        """
        parts = target.with_name(target.name + ".parts")
        await self.fetch_parts(manifest, parts, moved)
        try:
            await asyncio.to_thread(packing.unpack, manifest, parts, target, identities)
        finally:
            await asyncio.to_thread(shutil.rmtree, parts, ignore_errors=True)

    async def verify(
        self, manifest: Manifest, scratch: Path, node: str, identities: Sequence[bytes] = (), moved: Moved = unobserved
    ) -> Verification:
        """Restore a snapshot to a scratch file, compare it with its manifest and write the result beside it.

        An encrypted one that no given key opens is compared as it is stored. Raises StoreError, OSError: then nothing
        is known, and nothing written.
        """
        began = time.monotonic()
        depth = "content" if manifest.encryption is None or identities else "parts"
        problem: str | None = None
        try:
            if depth == "content":
                await self.fetch(manifest, scratch, identities, moved)
                await asyncio.to_thread(_compare, manifest, scratch)
            else:
                await self.fetch_parts(manifest, scratch.with_name(scratch.name + ".parts"), moved)
        except SnapshotDamagedError as error:
            problem = str(error)
        finally:
            await asyncio.to_thread(_remove_scratch, scratch)
        result = Verification(
            snapshot=manifest.name,
            ok=problem is None,
            depth=depth,
            problem=problem,
            verified_ms=time.time_ns() // 1_000_000,
            took_s=round(time.monotonic() - began, 3),
            node=node,
        )
        await self.store.put_bytes(f"{_FOLDER}{manifest.name}{_VERIFIED}", encode(result))
        return result


async def _some_at_once(parts: Sequence[Part], move: Callable[[Part], Awaitable[None]]) -> None:
    """Move all parts, a few side by side; the first failure ends all and is raised."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(part: Part) -> None:
        async with gate:
            await move(part)

    try:
        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                tasks.create_task(one(part), name=part.name)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _compare(manifest: Manifest, path: Path) -> None:
    """Raises SnapshotDamagedError if the file is not sound or its tables are not the manifest's."""
    db = copy.open_copy(path)
    try:
        copy.check(db, path)
        facts = table_facts(db)
    finally:
        db.close()
    differing = sorted(
        name for name in facts.keys() | manifest.tables.keys() if facts.get(name) != manifest.tables.get(name)
    )
    if differing:
        raise SnapshotDamagedError(
            f"snapshot {manifest.name} restores to other rows than its manifest names in table {differing[0]}"
        )


def _remove_scratch(scratch: Path) -> None:
    shutil.rmtree(scratch.with_name(scratch.name + ".parts"), ignore_errors=True)
    copy.discard(scratch)


def _is_manifest(name: str) -> bool:
    return name.endswith(_MANIFEST) and SNAPSHOT_NAME.fullmatch(name[len(_FOLDER) : -len(_MANIFEST)]) is not None


def _taken_ms(held: Held) -> float:
    return held.manifest.taken_ms if held.manifest is not None else taken_at(held.name) * 1000


def taken_at(name: str) -> float:
    """Seconds since 1970 that a snapshot's name tells."""
    return float(calendar.timegm(time.strptime(name[:16], "%Y%m%dT%H%M%SZ")))
