"""How a file comes to be a replica: it goes on, founds the cluster, joins it by a snapshot, or is adopted into it."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import apsw
import msgspec
import structlog

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import check_whole, open_database
from replicated_sqlite_agent.database.own_tables import exists, read_progress
from replicated_sqlite_agent.errors import FileUnusableError
from replicated_sqlite_agent.membership.members import ClusterRecord, found_cluster, read_cluster
from replicated_sqlite_agent.settings import Adopt, Merge, Settings
from replicated_sqlite_agent.snapshots import age
from replicated_sqlite_agent.snapshots.adopt import adopt
from replicated_sqlite_agent.snapshots.copy import discard, make_fresh
from replicated_sqlite_agent.snapshots.documents import Manifest, SnapshotDamagedError
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.stores.base import StoreError
from replicated_sqlite_agent.snapshots.stores.nats import NatsStore
from replicated_sqlite_agent.snapshots.stores.opening import configured
from replicated_sqlite_agent.stream.errors import KeyExists, NatsUnavailable, RequestFailed
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_contract import names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ASK_S = 120.0
"""How long a member may take to make a snapshot before another one is asked."""

LOOK_S = 0.2
"""Between two looks whether the application has made the file, or a member can give one."""

QUIET_S, QUIET_MOST_S = 0.5, 10.0
"""A new file is taken when it has not changed for so long, at the latest after the second time."""

LOOK_MOST_S = 3.0
"""Asking for a copy makes a member copy its database: who gets none asks less and less often."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What lies at the path of the database."""

    present: bool
    run: int = 0
    lineage: str | None = None
    replicated: bool = False


def look(path: Path) -> FileState:
    """Look at the file without changing it or leaving anything beside it. Raises FileUnusableError if it is no usable
    database.
    """
    closed = not path.with_name(path.name + "-wal").exists()
    if not path.exists():
        return FileState(present=False)
    db = open_database(path)
    if closed:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    try:
        if not exists(db):
            check_whole(db, path)
            return FileState(present=True)
        progress = read_progress(db)
        return FileState(present=True, run=progress.run, lineage=progress.lineage, replicated=True)
    finally:
        db.close()


class Bootstrap:
    """Brings the file to the point where a run can start. ``say`` gets one sentence about what is waited for."""

    def __init__(
        self,
        settings: Settings,
        session: Session,
        folder: Path,
        options: CaptureOptions,
        counters: Counters,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._session, self._folder = settings, session, folder
        self._options, self._counters, self._say = options, counters, say
        self.transfer = Repository(NatsStore(session))
        """Where members put a copy for others to join."""
        store = configured(settings.snapshots)
        self.store = Repository(store) if store is not None else self.transfer
        """Where backups go."""
        encryption = settings.snapshots.encryption
        self.recipients = (
            age.read_recipients(encryption.recipients, encryption.recipients_file) if encryption is not None else ()
        )
        """Public keys for which backups are encrypted."""
        self._refused: set[str] = set()
        """Snapshots that turned out not to be usable."""
        self.founder = False
        """This node's record founded the cluster, and no file exists yet: the application makes it."""

    async def lineage(self, file: FileState) -> str:
        """The cluster's lineage; founds the cluster if nobody has. Needs NATS."""
        record = await self._record()
        if file.lineage is not None and file.lineage != record.lineage:
            raise FileUnusableError(
                f"{self._settings.database} holds data of another cluster that was also named "
                f"{self._settings.cluster}: use another `cluster`, or run `rsqlite-agent uninstall` on the file first"
            )
        return record.lineage

    async def _stored_lineage(self) -> str | None:
        """The lineage of this cluster's backups, if there are any: nobody is there, but the data is."""
        if self.store is self.transfer:
            return None
        stored = await self.store.newest(self._refused)
        if stored is None or stored.cluster != self._settings.cluster:
            return None
        if stored.encryption is not None:
            raise FileUnusableError(
                f"there is neither {self._settings.database} nor a member that could give it, and the snapshots in "
                f"{self.store.place} are encrypted: run 'rsqlite restore --identity FILE' to make the file"
            )
        return stored.lineage

    async def _record(self, lineage: str | None = None) -> ClusterRecord:
        """The cluster's record; founds the cluster if nobody has, with the lineage of its backups if there are any."""
        record = await read_cluster(self._session)
        if record is None:
            now = time.time_ns() // 1_000_000
            record = ClusterRecord(lineage or secrets.token_hex(16), self._settings.node, now, self.policies())
            try:
                await found_cluster(self._session, record)
                log.info("this node founds the cluster", cluster=self._settings.cluster, node=self._settings.node)
            except KeyExists:
                record = await read_cluster(self._session)
                assert record is not None
        return record

    def policies(self) -> dict[str, str]:
        """Tables that merge otherwise than row by row, as configured here: table -> merge."""
        return {p.table: p.merge.value for p in self._settings.tables.policies if p.merge is not Merge.ROW_LWW}

    async def refound(self, lineage: str) -> None:
        """NATS has lost the cluster's record (its store was lost): write it again as this file knows it."""
        if await read_cluster(self._session) is None:
            now = time.time_ns() // 1_000_000
            try:
                await found_cluster(self._session, ClusterRecord(lineage, self._settings.node, now, self.policies()))
            except KeyExists:
                return

    async def obtain_file(self, *, wait_for_application: bool = True) -> str:
        """No file exists: wait until the application makes it (the founder), or join. Returns the lineage."""
        database, pause = self._settings.database, LOOK_S
        while not database.exists():
            try:
                record = await read_cluster(self._session) or await self._record(await self._stored_lineage())
                self.founder = record.founder == self._settings.node
                joined = await self._join(record)
            except StoreError as error:
                self._say(f"waiting for the store of the snapshots: {error}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LOOK_MOST_S)
                continue
            if joined or (self.founder and not wait_for_application):
                return record.lineage
            if self.founder:
                self._say("this node founds the cluster: waiting for the application to create the database")
                await self._file_appears()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_MOST_S)
        return (await self._record()).lineage

    async def _file_appears(self) -> None:
        database = self._settings.database
        while not (database.exists() and database.stat().st_size):
            await asyncio.sleep(LOOK_S)
        # The application's first migrations fill it: they go better without a second process in the file.
        ends = time.monotonic() + QUIET_MOST_S
        before: tuple[tuple[int, int], ...] = ()
        while time.monotonic() < ends:
            await asyncio.sleep(QUIET_S)
            before, last = _traces(database), before
            if before == last:
                return

    async def _join(self, record: ClusterRecord) -> bool:
        """Get a snapshot and put it into place; False if there is none yet."""
        manifest, repository = await self._snapshot()
        if manifest is None or manifest.lineage != record.lineage:
            self._say("waiting for a member that can give a first copy of the database")
            return False
        self._say(f"joining: fetching snapshot {manifest.name}")
        scratch = self._folder / "join.db"
        database = self._settings.database
        try:
            await repository.fetch(manifest, scratch)
            await asyncio.to_thread(make_fresh, scratch, self._settings.node)
            if database.exists():
                return True  # the application has made its own meanwhile: that one is adopted
            discard_leftovers(database)
            os.replace(scratch, database)
        except SnapshotDamagedError as error:
            # Replaced by a newer one while it was fetched, or damaged: then a member gives another one.
            log.warning("a snapshot could not be used to join; asking again", reason=str(error))
            self._refused.add(manifest.name)
            return False
        finally:
            discard(scratch)
        log.info("joined by a snapshot", snapshot=manifest.name, bytes=manifest.bytes, sequence=manifest.sequence)
        return True

    async def _snapshot(self) -> tuple[Manifest | None, Repository]:
        """A snapshot to join from, and where it lies.

        The newest of the backups if the stream still has all that follows it, else a new one from any member, else the
        newest there is.
        """
        stored = await self._stored()
        if stored is not None and await self._has_tail(stored):
            return stored, self.store
        subject = names.any_agent_subject(self._settings.cluster)
        try:
            answer = await self._session.request(subject, msgspec.json.encode({"do": "snapshot"}), ASK_S)
            return msgspec.json.decode(answer, type=Manifest), self.transfer
        except (NatsUnavailable, RequestFailed) as error:
            log.debug("no member gives a snapshot now", reason=str(error))
        newest = await self.transfer.newest()
        if stored is not None and (newest is None or newest.taken_ms < stored.taken_ms):
            return stored, self.store
        return newest, self.transfer

    async def _stored(self) -> Manifest | None:
        """The newest backup that can be read here; None if the store is away or there is none.

        It need not be verified: fetching checks it just as well.
        """
        if self.store is self.transfer:
            return None
        try:
            stored = await self.store.newest(self._refused)
        except StoreError as error:
            log.warning("the store of the snapshots cannot be asked", reason=str(error))
            return None
        return stored if stored is not None and stored.encryption is None else None

    async def _has_tail(self, manifest: Manifest) -> bool:
        state = await self._session.stream_state()
        whole = manifest.sequence == 0 and state.first == 1
        # The message at the position is still there: by it the reader sees that nothing was lost.
        return manifest.stream == state.id and (whole or manifest.sequence >= state.first)

    async def adopt(self) -> None:
        """The application's own file meets a cluster that exists: make them one, as `adopt` says."""
        database, policy = self._settings.database, self._settings.adopt
        if policy is Adopt.REFUSE:
            raise FileUnusableError(
                f"{database} was never part of cluster {self._settings.cluster} and `adopt` is refuse: remove the file "
                "to join with an empty one, or set `adopt` to merge"
            )
        pause = LOOK_S
        manifest, repository = await self._snapshot()
        while manifest is None:
            self._say("waiting for a member that can give the cluster's data, to adopt this file into it")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_MOST_S)
            manifest, repository = await self._snapshot()
        scratch = self._folder / "adopt.db"
        try:
            await repository.fetch(manifest, scratch)
            await asyncio.to_thread(make_fresh, scratch, self._settings.node)
            merge = policy is Adopt.MERGE
            await asyncio.to_thread(adopt, database, scratch, self._options, self._counters, merge=merge)
        finally:
            discard(scratch)
        log.info("the file is adopted into the cluster", snapshot=manifest.name)


def _traces(database: Path) -> tuple[tuple[int, int], ...]:
    """Size and time of change of the database's files."""
    found = []
    for suffix in ("", "-wal", "-journal"):
        try:
            stat = os.stat(database.with_name(database.name + suffix))
        except FileNotFoundError:
            continue
        found.append((stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def discard_leftovers(database: Path) -> None:
    """A WAL or journal without its database would be played into the new one."""
    for suffix in ("-wal", "-shm", "-journal"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
