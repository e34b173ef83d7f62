"""One run of the agent on one file: the stations of the path, wired in the order of a change, and their upkeep."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import apsw
import msgspec
import structlog

from replicated_sqlite_agent.bootstrap import Bootstrap, FileState
from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.capture.triggers import LOG
from replicated_sqlite_agent.changes import Key, Vector, dominates, least
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import CANNOT_WRITE, Worker, all_rows, scalar
from replicated_sqlite_agent.database.identifiers import PREFIX
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.health.orphans import OrphanCount
from replicated_sqlite_agent.inbound.applier import Applier, Outcome
from replicated_sqlite_agent.inbound.intake import Intake
from replicated_sqlite_agent.membership.leases import RENEW_S, NodeLease, try_lease
from replicated_sqlite_agent.membership.members import ClusterRecord, Member, read_cluster, read_members, write_member
from replicated_sqlite_agent.membership.trim import keep_from, trim, worth_trimming
from replicated_sqlite_agent.outbound.publisher import Publisher
from replicated_sqlite_agent.replica import conflicts
from replicated_sqlite_agent.replica.state import FileReplacedError, Replica
from replicated_sqlite_agent.settings import Retention, Settings
from replicated_sqlite_agent.snapshots.documents import Manifest
from replicated_sqlite_agent.snapshots.keeper import Backups, Keeper
from replicated_sqlite_agent.snapshots.stores.base import StoreError
from replicated_sqlite_agent.snapshots.taking import Source, take_snapshot
from replicated_sqlite_agent.stream.errors import (
    NatsUnavailable,
    PublishUnacknowledged,
    RequestFailed,
    StreamFull,
)
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_agent.timekeeper import Timekeeper
from replicated_sqlite_agent.wire import FORMAT, Chunk, Header, encode_chunk, encode_frame
from replicated_sqlite_contract import __version__, names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

HOUSEKEEPING_S = 1.0
RUN_BITS, STEP_BITS = 48, 36
"""Runs are drawn from 48 bits; of one file's runs each is smaller than the one before, by a random step of 36 bits."""

SETTLE_S, SETTLE_MOST_S = 0.25, 2.0
"""Quiet time after which a schema change counts as finished, and the longest wait for it."""
TRIM_S = 10.0
"""Between two looks whether the stream should be trimmed."""
MEND_PAUSE_S = 3.0
"""Between two attempts to fill a gap."""
ASK_S = 5.0
"""How long another agent may take to say its position."""


class AdoptionNeededError(Exception):
    """The file has rows of its own and the cluster exists: the run ends, the file is adopted, a new run begins."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """Numbers of the file as of the last housekeeping."""

    log_rows: int = 0
    unfolded_rows: int = 0
    hidden_rows: int = 0
    parked_groups: int = 0
    paused_rows: int = 0
    conflicts: int = 0
    dead_letters: int = 0
    oldest_unpublished_ms: int | None = None


class Life:
    """Begins with `start`, works in `run` until stopped or until the file is replaced."""

    def __init__(
        self,
        settings: Settings,
        session: Session,
        bootstrap: Bootstrap,
        options: CaptureOptions,
        counters: Counters,
        timekeeper: Timekeeper,
        folder: Path,
        ensure_stream: Callable[[], Awaitable[None]],
    ) -> None:
        self.settings, self.session, self.counters, self.timekeeper = settings, session, counters, timekeeper
        self._bootstrap, self._options, self._folder = bootstrap, options, folder
        self._ensure_stream = ensure_stream
        self.run_number = next_run(0)
        self.worker = Worker("writer")
        self.lease = NodeLease(session, settings.node, timekeeper.now_ms)
        self.vitals = Vitals()
        self.policy_alarms: list[str] = []
        self.orphans = OrphanCount(settings.database, lambda: counters.applied_rows + counters.folded_rows)
        self.members: int | None = None
        """How many members the cluster has, this one included; None until that was read."""
        self.started = asyncio.Event()
        """Capture is installed and everything that was in the stream at the start is applied."""
        self.confirmed = asyncio.Event()
        """The file belongs to the cluster; changes are published and consumed."""
        self.waiting_for = "NATS"
        self.moved = asyncio.Condition()
        self.replica: Replica
        self.applier: Applier
        self.publisher: Publisher | None = None
        self.intake: Intake | None = None
        self._gap = asyncio.Event()
        self._gap_since: float | None = None
        self._said_again: list[tuple[float, Vector]] = []
        self._snapshotting = asyncio.Lock()
        self._transfer, self._store = bootstrap.transfer, bootstrap.store
        self.backups = Backups(self._store.place)
        self._inode: tuple[int, int] = (0, 0)
        self.last_progress = time.monotonic()
        """When housekeeping last went through: the process is alive while this moves."""

    # ---- beginning -------------------------------------------------------------------------------------------------

    async def claim_name(self) -> None:
        """Take the lease on the node name before a file is touched that was never replicated.

        Raises HeldByAnotherError, NatsUnavailable, PublishUnacknowledged.
        """
        await self.lease.take(self.run_number, 0)

    async def start(self, file: FileState) -> None:
        """Install capture and begin the run on the file. Raises FileUnusableError."""
        self._former_run, self._fresh = file.run, file.replicated and file.run == 0
        self.run_number = next_run(file.run) if file.run else self.run_number
        await self.worker.call(self._open)

    def _open(self) -> None:
        found = os.stat(self.settings.database)
        self._inode = (found.st_dev, found.st_ino)
        self.replica = Replica(self.settings.database, self._options, self.counters)
        self.replica.timekeeper = self.timekeeper
        self.applier = Applier(self.replica, self.counters, self.settings.limits.max_ahead)
        self.replica.start_run(self.run_number, self.settings.cluster, self.settings.node)
        self.applier.show()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; publish what is left; return. Raises FileReplacedError, AdoptionNeededError."""
        stops = [self._serve_requests()]
        try:
            async with asyncio.TaskGroup() as tasks:
                jobs = [
                    tasks.create_task(self._housekeeping(), name="housekeeping"),
                    tasks.create_task(self._replicate(), name="replicate"),
                ]
                await self._until(stop, jobs)
                await self._flush_at_stop()
                for job in jobs:
                    job.cancel()
        except BaseExceptionGroup as group:
            error = _first(group)
            if isinstance(error, FileReplacedError):
                # The new file may come from anywhere: it does not say that it was this node's.
                await self._give_name_back("catching up")
            raise error from group
        finally:
            for serving in stops[0]:
                serving()
            await self.worker.call(self._close)
            self.worker.close()

    def _close(self) -> None:
        if hasattr(self, "replica"):
            self.replica.close()

    async def _until(self, stop: asyncio.Event, jobs: list[asyncio.Task[None]]) -> None:
        waiting = asyncio.create_task(stop.wait(), name="stop signal")
        try:
            await asyncio.wait({waiting, *jobs}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def _replicate(self) -> None:
        """Once NATS is there: confirm that the file belongs to the cluster, then run all stations."""
        await self._confirm()
        self.publisher = Publisher(
            self.session,
            self.replica,
            self.counters,
            self.timekeeper,
            cluster=self.settings.cluster,
            node=self.settings.node,
            spool=self._folder,
            message_bytes=self.settings.limits.message_bytes,
            prepare=self._prepare,
            repair=self._repair,
        )
        self.intake = Intake(
            self.session,
            self.applier,
            self.worker,
            self.counters,
            spool=self._folder,
            read_back=self._read_back,
            on_outcome=self._on_outcome,
        )
        self.confirmed.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.intake.run(), name="intake")
            if not self._fresh:
                tasks.create_task(self.publisher.run(), name="publisher")
            tasks.create_task(self._heartbeats(), name="heartbeats")
            tasks.create_task(self._renew_lease(), name="lease")
            tasks.create_task(self._mend_gaps(), name="mend gaps")
            tasks.create_task(self.orphans.run(), name="count orphans")
            tasks.create_task(self._trim_stream(), name="trim stream")
            await self.started.wait()
            if self.settings.snapshots.schedule is not None:
                tasks.create_task(self._keeper().run(), name="snapshots")
            if self._fresh:
                # It must have applied every delete that others may already forget, before it says anything.
                tasks.create_task(self.publisher.run(), name="publisher")

    async def _confirm(self) -> None:
        while not self.confirmed.is_set():
            await self.session.wait_connected()
            try:
                await self._ensure_stream()
                await self.lease.take(self.run_number, self._former_run)
                await self._confirm_lineage()
                return
            except (NatsUnavailable, PublishUnacknowledged) as error:
                log.debug("the cluster cannot be reached yet", reason=str(error))
                await asyncio.sleep(0.5)

    async def _confirm_lineage(self) -> None:
        self._compare_policies(await read_cluster(self.session))
        known = self.replica.progress.lineage
        if known is not None:
            await self._bootstrap.refound(known)
            await self._bootstrap.lineage(FileState(present=True, lineage=known))
            return
        record = await read_cluster(self.session)
        if record is not None and record.founder != self.settings.node:
            raise AdoptionNeededError
        await self._set_lineage(await self._bootstrap.lineage(FileState(present=True)))

    def _compare_policies(self, record: ClusterRecord | None) -> None:
        """Merging by row here and by column there converges all the same, but surely is not what was meant."""
        if record is None:
            return
        here = self._bootstrap.policies()
        tables = sorted(t for t in here.keys() | record.policies.keys() if here.get(t) != record.policies.get(t))
        self.policy_alarms = [
            f"tables.policies: table {table} merges {here.get(table, 'row-lww')} here and "
            f"{record.policies.get(table, 'row-lww')} in the cluster; configure all nodes alike"
            for table in tables
        ]

    async def _set_lineage(self, lineage: str) -> None:
        def store() -> None:
            with self.replica.transaction():
                self.replica.progress = replace(self.replica.progress, lineage=lineage)

        await self._written(store)

    # ---- what the stations call -------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        await self._schema_settled()
        await self._written(self._housekeep)

    async def _schema_settled(self) -> None:
        """Let the application finish its schema change before capture is made to fit.

        Taking the write lock between two of its statements would fail a deferred transaction that has read already
        (SQLITE_BUSY at once, whatever its timeout). What it writes meanwhile is found when capture is installed.
        """
        seen = await self.worker.call(self._schema_version)
        ends = time.monotonic() + SETTLE_MOST_S
        while seen != self.replica.catalog.schema_version and time.monotonic() < ends:
            await asyncio.sleep(SETTLE_S)
            before, seen = seen, await self.worker.call(self._schema_version)
            if seen == before:
                return

    def _schema_version(self) -> int:
        return int(self.replica.db.pragma("schema_version"))

    async def _written(self, work: Callable[[], None]) -> None:
        """Do it on the writer thread, again and again while the file cannot be written; housekeeping says so."""
        while True:
            try:
                return await self.worker.call(work)
            except CANNOT_WRITE as error:
                log.debug("the database cannot be written; trying again", reason=str(error))
                await asyncio.sleep(HOUSEKEEPING_S)

    async def _repair(self, gone: list[tuple[int, Key]]) -> None:
        def log_them() -> None:
            with self.replica.transaction():
                self.replica.fold_all()
                self.replica.log_deletes(gone)

        await self._written(log_them)

    async def _read_back(self, group_id: bytes) -> None:
        if self.publisher is not None:
            await self.publisher.read_back(group_id)

    def _on_outcome(self, outcome: Outcome) -> None:
        if outcome.gap:
            self._gap.set()
        asyncio.get_running_loop().create_task(self._announce(), name="announce")

    async def _announce(self) -> None:
        async with self.moved:
            self.moved.notify_all()

    # ---- upkeep ----------------------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        failure = ""
        while True:
            self._check_file()
            try:
                await self._schema_settled()
                self.vitals = await self.worker.call(self._look_after)
                if failure:
                    log.info("the database can be written again")
                failure = ""
            except CANNOT_WRITE as error:
                if not failure:
                    log.error("the database cannot be written; trying again", reason=str(error))
                failure = str(error)
            self.last_progress = time.monotonic()
            await self._announce()
            await asyncio.sleep(HOUSEKEEPING_S)

    def _check_file(self) -> None:
        try:
            found = os.stat(self.settings.database)
        except FileNotFoundError as error:
            raise FileReplacedError(f"{self.settings.database} was removed") from error
        if (found.st_dev, found.st_ino) != self._inode:
            raise FileReplacedError(f"{self.settings.database} was replaced by another file")

    def _look_after(self) -> Vitals:
        if self._work_to_do():
            self._housekeep()
        return self._read_vitals()

    def _work_to_do(self) -> bool:
        replica = self.replica
        offset = self.timekeeper.offset_ms()
        return (
            replica.unfolded() > 0
            or int(replica.db.pragma("schema_version")) != replica.catalog.schema_version
            or replica.to_store()
            or (self.intake is not None and self.intake.to_remember)
            or bool(self.applier.ahead)
            or (offset is not None and replica.drifts(offset))
        )

    def _housekeep(self) -> None:
        self.applier.housekeeping()
        with self.replica.transaction():
            self.replica.follow_clock()
            if self.intake is not None:
                self.intake.remember()
            conflicts.bound(self.replica.db, self.settings.limits.conflicts_rows)

    def _read_vitals(self) -> Vitals:
        db, progress = self.replica.db, self.replica.progress
        first, last = all_rows(db, f"SELECT min(seq), max(seq) FROM {LOG}")[0]
        published = max(progress.published_seq, self.publisher.acknowledged.seq if self.publisher else 0)
        oldest = scalar(db, f"SELECT ts FROM {LOG} WHERE seq > ? ORDER BY seq LIMIT 1", (published,))

        def count(table: str) -> int:
            return int(scalar(db, f"SELECT count(*) FROM {PREFIX}{table}") or 0)

        return Vitals(
            log_rows=last - first + 1
            if last is not None and last > min(progress.published_seq, progress.folded_seq)
            else 0,
            unfolded_rows=self.replica.unfolded(),
            hidden_rows=count("hidden"),
            parked_groups=count("parked"),
            paused_rows=int(scalar(db, f"SELECT sum(rows) FROM {PREFIX}paused") or 0),
            conflicts=count("conflicts"),
            dead_letters=count("dead_letters"),
            oldest_unpublished_ms=oldest,
        )

    async def _renew_lease(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self.session.wait_connected()
                await self._ensure_stream()
                await self.lease.renew(self.run_number)
                if self.replica.progress.lineage is not None:
                    await self._bootstrap.refound(self.replica.progress.lineage)
                self.members = sum(m.state != "stopped" for m in (await read_members(self.session)).values())
            except (NatsUnavailable, PublishUnacknowledged) as error:
                log.debug("the lease on the node name could not be renewed", reason=str(error))

    async def _heartbeats(self) -> None:
        while True:
            try:
                await self.session.wait_connected()
                await self._heartbeat()
            except (NatsUnavailable, PublishUnacknowledged, StreamFull, *CANNOT_WRITE) as error:
                log.debug("a heartbeat could not be sent", reason=str(error))
                await asyncio.sleep(0.5)
                continue
            await asyncio.sleep(self.settings.limits.heartbeat)

    async def _heartbeat(self) -> None:
        """Say in the stream how far this replica is; the first one, read back, opens the start."""
        epoch = self.publisher.epoch if self.publisher is not None else 0
        header, seq = await self.worker.call(self._heartbeat_facts)
        chunk = Chunk(FORMAT, self.run_number, secrets.token_bytes(8), header.lo, header.hi, encode_frame(header))
        subject = names.heartbeat_subject(self.settings.cluster, self.settings.node, self.run_number)
        message_id = f"{self.run_number:012x}.{chunk.group.hex()}.0"
        sequence = await self.session.publish(subject, encode_chunk(chunk), message_id)
        # Not if a refill has begun meanwhile: it lowers what counts as published.
        if seq is not None and self.publisher is not None and self.publisher.epoch == epoch:
            await self.publisher.advance(header.hi, seq)
        await self._write_member("running" if self.started.is_set() else "catching up")
        if not self.started.is_set():
            await self._caught_up(sequence)

    def _heartbeat_facts(self) -> tuple[Header, int | None]:
        """The heartbeat's header, and the log row that it says is published (None while something is not)."""
        replica = self.replica
        with replica.transaction():
            replica.fold_all()
        progress = replica.progress
        newest = int(scalar(replica.db, f"SELECT max(seq) FROM {LOG}") or 0)
        acknowledged = self.publisher.acknowledged if self.publisher is not None else None
        published = max(progress.published, acknowledged.clock if acknowledged is not None else 0)
        published_seq = max(progress.published_seq, acknowledged.seq if acknowledged is not None else 0)
        pending = newest > published_seq or bool(progress.covers)
        hi = published if pending else max(published, progress.clock)
        seen = replica.vector_of_others()
        header = Header(
            progress.node,
            published,
            hi,
            stretches=[(hi, seen)],
            reported=seen | {progress.run: hi},
            heartbeat=True,
            clean=not progress.covers,
        )
        return header, None if pending else newest

    async def _caught_up(self, sequence: int) -> None:
        self.waiting_for = f"the stream to be applied up to message {sequence}"
        async with self.moved:
            await self.moved.wait_for(lambda: self.intake is not None and self.intake.consumed >= sequence)
        self.started.set()
        log.info("caught up", node=self.settings.node, run=f"{self.run_number:012x}", sequence=sequence)

    async def _write_member(self, state: str) -> None:
        progress = self.replica.progress
        member = Member(
            self.settings.node,
            self.run_number,
            __version__,
            state,
            self.replica.token_vector(),
            progress.sequence,
            self.timekeeper.now_ms() or time.time_ns() // 1_000_000,
        )
        await write_member(self.session, member)

    async def _trim_stream(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TRIM_S):
                    await self._publisher_full()
            try:
                await self._trim_once()
            except (AgentError, *CANNOT_WRITE) as error:
                log.debug("the stream could not be trimmed", reason=str(error))

    async def _publisher_full(self) -> None:
        """Return when publishing is held up by a full stream, not before it was for a second."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            if self.publisher is not None and self.publisher.full:
                return

    async def _trim_once(self) -> None:
        state = await self.session.stream_state()
        now = self.timekeeper.now_ms()
        if now is None or not self.started.is_set() or not worth_trimming(state):
            return
        if not await try_lease(self.session, "trim", self.run_number, now, TRIM_S * 2):
            return
        members = await read_members(self.session)
        floor = keep_from(members.values(), now, self.settings.limits.member_ttl)

        async def snapshot_sequence(wanted: int) -> int:
            return await self._snapshot_position(state.id, wanted)

        purged = await trim(state, floor, snapshot_sequence, self.session.purge)
        if purged:
            if self.publisher is not None:
                self.publisher.retry()
            log.info(
                "messages that a snapshot and every member have passed are removed from the stream", messages=purged
            )

    # ---- gaps ------------------------------------------------------------------------------------------------------

    async def _mend_gaps(self) -> None:
        """Something is missing that the stream will not bring: have everybody say it again; at last, go on without."""
        while True:
            await self._gap.wait()
            self._gap.clear()
            self._gap_since = self._gap_since or time.monotonic()
            try:
                await self.session.wait_connected()
                await self._ask_for_refill()
            except (NatsUnavailable, PublishUnacknowledged) as error:
                log.debug("a refill could not be asked for", reason=str(error))
            await asyncio.sleep(MEND_PAUSE_S)
            if self.vitals.parked_groups == 0 and not self._gap.is_set():
                self._gap_since = None
                continue
            if time.monotonic() - self._gap_since > self.settings.limits.gap_timeout:
                forced = await self.worker.call(self.applier.force_gaps)
                log.warning("nobody could fill a gap: changes are applied without what came before", groups=forced)
                self._gap_since = None
                continue
            self._gap.set()

    async def _ask_for_refill(self) -> None:
        members = await read_members(self.session)
        others = [node for node in members if node != self.settings.node]
        answers = await asyncio.gather(*(self._ask(node, {"do": "position"}) for node in others))
        vectors = [_vector(a["vector"]) for a in answers if a is not None]
        own = await self.worker.call(self.replica.runs.vector)
        lo = least([own, *vectors])
        request: dict[str, object] = {"do": "say again", "lo": {str(run): clock for run, clock in lo.items()}}
        await asyncio.gather(self._say_again(lo), *(self._ask(node, request) for node in others))

    async def _ask(self, node: str, request: dict[str, object]) -> dict[str, object] | None:
        """Ask one agent; None if it does not answer."""
        subject = names.agent_subject(self.settings.cluster, node)
        try:
            answer = await self.session.request(subject, msgspec.json.encode(request), ASK_S)
        except (NatsUnavailable, RequestFailed):
            return None
        return msgspec.json.decode(answer, type=dict[str, object])

    async def _say_again(self, lo: Vector) -> None:
        """Publish again what somebody may lack, unless that was just done."""
        now = time.monotonic()
        self._said_again = [(at, said) for at, said in self._said_again if now - at < MEND_PAUSE_S * 2]
        vector = await self.worker.call(self.replica.runs.vector)
        if dominates(lo, vector) or any(dominates(lo, said) for _, said in self._said_again):
            return
        self._said_again.append((now, lo))
        if self.publisher is None:
            return

        def refill() -> None:
            with self.replica.transaction():
                self.replica.refill(lo)

        self.publisher.hold()
        try:
            await self._written(refill)
        finally:
            self.publisher.say_again()
        log.info("rows that the stream lost are published again")

    # ---- requests from others --------------------------------------------------------------------------------------

    def _serve_requests(self) -> list[Callable[[], None]]:
        cluster, node = self.settings.cluster, self.settings.node
        return [
            self.session.serve(names.agent_subject(cluster, node), self._answer),
            self.session.serve(names.any_agent_subject(cluster), self._answer, names.AGENTS_QUEUE),
        ]

    async def _answer(self, data: bytes) -> bytes:
        try:
            request = msgspec.json.decode(data, type=dict[str, object])
        except msgspec.MsgspecError as error:
            raise AgentError(f"a request must be a JSON object: {error}") from error
        if not self.confirmed.is_set():
            raise AgentError(f"node {self.settings.node} is not a member of the cluster yet")
        match request.get("do"):
            case "position":
                vector = await self.worker.call(self.replica.runs.vector)
                return msgspec.json.encode({"version": 1, "vector": {str(r): c for r, c in vector.items()}})
            case "wait":
                reached = await self.wait(_vector(request.get("vector")), float(str(request.get("timeout", 30))))
                return msgspec.json.encode({"version": 1, "reached": reached})
            case "say again":
                await self._say_again(_vector(request.get("lo")))
                return msgspec.json.encode({"version": 1})
            case "snapshot":
                backup = request.get("to") == "store"
                return msgspec.json.encode(await (self._keeper().once() if backup else self.snapshot()))
            case other:
                raise AgentError(f"node {self.settings.node} knows no request {other!r}")

    async def snapshot(self, *, backup: bool = False) -> Manifest:
        """Take a snapshot for a joining member, or into the configured store; several wait for each other.

        What joins goes through the cluster's own object store, so that it needs nothing that may be away.
        """
        if not self.started.is_set():
            raise AgentError(f"node {self.settings.node} is still catching up")
        repository = self._store if backup else self._transfer
        async with self._snapshotting:
            with suppress(*CANNOT_WRITE):
                # The copy knows the newest position; and a long read that begins after a write, unlike one that begins
                # on an empty WAL, does not slow the application's commits.
                await self._prepare()
            manifest = await take_snapshot(self._snapshot_source(), repository, backup=backup)
            if not backup:
                retention = self.settings.snapshots.retention if self._store is self._transfer else None
                await repository.prune(1 if retention is None else retention.keep, None)
        if repository is self._store:
            self.backups.last = manifest
        return manifest

    def _snapshot_source(self) -> Source:
        keys = self._bootstrap.recipients
        return Source(
            self.settings.database, self._folder, self._options, self.counters, keys, self._now_ms, self._published
        )

    def _now_ms(self) -> int:
        """The stream server's time, or this machine's as long as it is not known."""
        return self.timekeeper.now_ms() or time.time_ns() // 1_000_000

    def _keeper(self) -> Keeper:
        """What takes and checks backups."""
        default = Retention(keep=1) if self._store is self._transfer else Retention()
        return Keeper(
            session=self.session,
            repository=self._store,
            schedule=self.settings.snapshots.schedule,
            retention=self.settings.snapshots.retention or default,
            run_number=self.run_number,
            node=self.settings.node,
            folder=self._folder,
            now_ms=self._now_ms,
            counters=self.counters,
            backups=self.backups,
            take=lambda: self.snapshot(backup=True),
        )

    async def _snapshot_position(self, stream: str, wanted: int) -> int:
        """The position of a snapshot of this stream from which others can join, a new one's if the best lies before."""
        if self._store is not self._transfer:
            with suppress(StoreError):
                best = await self._store.best()
                if best is not None and best.good and best.manifest is not None:
                    last = best.manifest
                    if last.stream == stream and last.sequence >= wanted and last.encryption is None:
                        return last.sequence
        newest = await self._transfer.newest()
        if newest is None or newest.stream != stream or newest.sequence < wanted:
            newest = await self.snapshot()
        return newest.sequence

    async def _published(self, clock: int) -> None:
        """Return once the stream has everything of this run up to this clock."""
        assert self.publisher is not None
        if clock <= self.publisher.acknowledged.clock:
            return
        newest = await self.worker.call(self._newest)
        publishing = asyncio.create_task(self.publisher.wait_published(newest), name="publish before the manifest")
        try:
            while not publishing.done() and not self.publisher.full:
                # A full stream takes nothing until it is trimmed, and is trimmed only behind a snapshot. Should this
                # node be lost with what it could not publish, heartbeats show that the joiner has more, and it says so.
                await asyncio.wait({publishing}, timeout=HOUSEKEEPING_S)
        finally:
            publishing.cancel()

    def _newest(self) -> int:
        return int(scalar(self.replica.db, f"SELECT max(seq) FROM {LOG}") or 0)

    # ---- questions -------------------------------------------------------------------------------------------------

    async def position(self) -> Vector:
        """What this replica shows, every local write so far included."""

        def folded() -> Vector:
            if self.replica.unfolded():
                with self.replica.transaction():
                    self.replica.fold_all()
            return self.replica.token_vector()

        return await self.worker.call(folded)

    async def wait(self, vector: Vector, timeout_s: float) -> bool:
        """Whether all of it is applied here, at the latest after the time."""

        def here() -> bool:
            # Its own writes are in the file before anybody can have a token of them.
            return dominates(self.applier.shown | {self.run_number: 1 << 63}, vector)

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self.moved:
                await self.moved.wait_for(here)
        return here()

    async def flush(self, acks: str | int, timeout_s: float) -> tuple[bool, str]:
        """Whether every local write so far has the durability asked for, at the latest after the time."""
        ends = time.monotonic() + timeout_s
        if self.publisher is None:
            return False, "NATS has not been reached yet; the writes are on the local disk"
        newest = await self.worker.call(self._newest)
        try:
            async with asyncio.timeout(timeout_s):
                await self.publisher.wait_published(newest)
        except TimeoutError:
            return False, "the stream has not acknowledged all writes in time; they are on the local disk"
        if acks == "stream":
            return True, "the stream has all writes"
        vector = {self.run_number: (await self.position()).get(self.run_number, 0)}
        members = await read_members(self.session)
        others = [m.node for m in members.values() if m.node != self.settings.node and m.state != "stopped"]
        wanted = len(others) if acks == "all" else int(acks)
        left = max(0.1, ends - time.monotonic())
        request = {"do": "wait", "vector": {str(r): c for r, c in vector.items() if c}, "timeout": left}
        answers = await asyncio.gather(*(self._ask_long(node, request, left) for node in others))
        reached = sum(1 for a in answers if a is not None and a.get("reached"))
        if wanted > len(others):
            return False, f"{wanted} members were asked for, and there are only {len(others)} besides this one"
        return reached >= wanted, f"{reached} of {len(others)} other members have applied all writes"

    async def _ask_long(self, node: str, request: dict[str, object], timeout_s: float) -> dict[str, object] | None:
        subject = names.agent_subject(self.settings.cluster, node)
        try:
            answer = await self.session.request(subject, msgspec.json.encode(request), timeout_s + 1)
        except (NatsUnavailable, RequestFailed):
            return None
        return msgspec.json.decode(answer, type=dict[str, object])

    async def conflicts(self, after: int, limit: int) -> list[dict[str, object]]:
        """A page of the conflict log."""
        return await self.worker.call(conflicts.page, self.replica.db, after, limit)

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def _flush_at_stop(self) -> None:
        """Publish what is left, give the name back; what cannot be published stays on disk and is said."""
        newest = await self.worker.call(self._newest)
        published = self.replica.progress.published_seq
        if self.publisher is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.limits.flush_timeout if self.session.connected else 0):
                    await self.publisher.wait_published(newest)
            published = self.publisher.acknowledged.seq
        if newest > published:
            log.warning(
                "stopping with changes that are not published; they are on disk and will be sent by the next start",
                rows=newest - published,
            )
        await self.worker.call(self._last_housekeeping)
        await self._give_name_back("stopped")

    async def _give_name_back(self, state: str) -> None:
        """So that the next run of this node need not wait for the end of the lease."""
        with suppress(AgentError, TimeoutError):
            async with asyncio.timeout(2):
                if self.session.connected and self.confirmed.is_set():
                    await self._write_member(state)
                    await self.lease.release()

    def _last_housekeeping(self) -> None:
        with suppress(apsw.Error, FileReplacedError):
            self._housekeep()


def next_run(former: int) -> int:
    """The number of the run after ``former`` (0: there was none) on one file.

    Smaller, because of two versions with one clock the larger run's is kept: what the former run had published but not
    folded gets the same clocks again, and is then known to everybody by the former run's version. Random, because
    copies of the file have runs of their own.
    """
    if former > 1 << STEP_BITS:
        return former - 1 - secrets.randbelow(1 << STEP_BITS)
    return 1 << (RUN_BITS - 1) | secrets.randbits(RUN_BITS - 1)


def _vector(value: object) -> Vector:
    """A vector from JSON, whose keys are text."""
    if not isinstance(value, dict):
        raise AgentError("a vector must be an object {run: clock}")
    return {int(run): int(clock) for run, clock in value.items()}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended the tasks, out of however many groups it is wrapped in."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
