"""Replicas of the real core around a stream in memory, in one process and one thread, driven by a seed.

The files, the triggers, the fold, the reader, the wire format, the assembler and the applier are the agent's own; only
time, the stream and the moments at which things happen are simulated. What is random comes from the seed, so a history
repeats exactly. A process would not outlive a crash: here all objects of the agent are thrown away and made again.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.changes import CLOCK_SHIFT, Key, Kind, RowState
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.exact import select
from replicated_sqlite_agent.inbound.applier import Applier, Point
from replicated_sqlite_agent.inbound.assembler import Arrived, Assembler
from replicated_sqlite_agent.outbound import log_reader
from replicated_sqlite_agent.outbound.log_reader import Group, LogReader, NotReadyError, Sent
from replicated_sqlite_agent.replica import bulk
from replicated_sqlite_agent.replica.state import Replica
from replicated_sqlite_agent.settings import Merge, Policy, Tables
from replicated_sqlite_agent.timekeeper import Timekeeper
from replicated_sqlite_agent.wire import FORMAT, Chunk, decode_chunk, encode_chunk
from simulation.application import BY_COLUMN, NODES_MAX, SCHEMA, Application

LOG = "__rsqlite_log"
CLUSTER = "simulated"
START_MS = 1_700_000_000_000


class FlawError(AssertionError):
    """Something that must never happen."""


class AbortedError(Exception):
    """The simulated disk refused a commit of the agent."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A local write as the fold stored it."""

    table: str
    key: Key
    state: RowState
    run: int
    clock: int
    seen: dict[int, int]
    columns: tuple[str, ...]
    inherited: bool
    """The former run may have published it under its own number."""


@dataclass(slots=True)
class Stream:
    """Messages by sequence, from 1."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last sequence, 0 if it is empty."""
        return len(self.messages)

    def put(self, time_ms: int, data: bytes) -> int:
        """Store a message; returns its sequence."""
        self.messages.append((time_ms, data))
        return len(self.messages)


class WatchedReplica(Replica):
    """A replica whose folds are noted, so that what must survive is known."""

    def __init__(self, path: Path, options: CaptureOptions, counters: Counters, noted: list[Noted]) -> None:
        super().__init__(path, options, counters)
        self._noted = noted
        self.starting = True
        self.stamped: list[tuple[str, Key, int]] = []
        """(table, key, clock) of each log row folded in this transaction that says a change."""

    def fold(self, rows_max: int, usable: set[int] | None = None) -> int:
        """The fold, and a note of each key that it gave a version."""
        before, seen, tables = self.progress, self.vector_of_others(), dict(self.catalog.by_number)
        columns = ["top", "ts", *(f"k{i + 1}" for i in range(self._log_width()))]
        count = super().fold(rows_max, usable)
        if not count:
            return 0
        rest = f"FROM {LOG} WHERE seq > {before.folded_seq} AND seq <= {self.progress.folded_seq} ORDER BY seq"
        mentioned: dict[tuple[int, Key], None] = {}
        clock = before.clock
        for top, stamp_ms, *key in select(self.db, columns, rest):
            clock = max(clock + 1, (stamp_ms + before.clock_offset) << CLOCK_SHIFT)
            number, kind = divmod(top, 8)
            if kind in (Kind.INSERT, Kind.UPDATE, Kind.DELETE) and number in self.tables and number in tables:
                table = tables[number].table
                name = tuple(key[: len(table.key)])
                mentioned[number, name] = None
                self.stamped.append((table.name, table.same_key(name), clock))
        if clock != self.progress.clock:
            raise FlawError(f"the fold ends at clock {self.progress.clock}, its log rows say {clock}")
        for number, name in mentioned:
            if not self._mentioned_later(number, name):
                self._note(number, name, seen)
        return count

    def _mentioned_later(self, number: int, key: Key) -> bool:
        """Whether the fold stopped in the middle of what the log says of a key: what it stored is not for anybody."""
        width, same = len(key), self.tables[number].table.same_key
        columns = [f"k{i + 1}" for i in range(width)]
        rest = f"FROM {LOG} WHERE seq > {self.progress.folded_seq} AND top / 8 = {number}"
        return any(same(later) == same(key) for later in select(self.db, columns, rest))

    def _note(self, number: int, key: Key, seen: dict[int, int]) -> None:
        rows = self.tables[number]
        if rows.table.keyless:
            return
        stored = rows.entry(key)
        if stored is None:
            raise FlawError(f"{rows.table.name}{key} was folded and has no versions")
        clock = max((v.clock for v in stored.state.versions() if v.run == self.progress.run), default=0)
        if stored.state.newest().clock > clock:
            raise FlawError(f"{rows.table.name}{key} was written at {clock} after seeing {stored.state}")
        if clock == 0:
            raise FlawError(f"{rows.table.name}{key} was folded and has no version of its own: {stored.state}")
        same = rows.table.same_key(key)
        columns = rows.table.columns
        state, run = stored.state, self.progress.run
        self._noted.append(Noted(rows.table.name, same, state, run, clock, seen, columns, self.starting))


class ServerTime(Timekeeper):
    """The stream server's time, as the simulation has it."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def now_ms(self) -> int | None:
        """The server's time; None if this world's nodes have not measured it."""
        return self._node.world.now_ms if self._node.world.measured else None

    def offset_ms(self) -> int | None:
        """What to add to this node's wall clock."""
        return -self._node.skew_ms if self._node.world.measured else None


class Node:
    """One file with its application and its agent."""

    def __init__(self, world: World, number: int, path: Path) -> None:
        self.world, self.number, self.path, self.name = world, number, path, f"n{number}"
        self.skew_ms = 0
        self.app = Application(path, number, world.chance, self.wall_ms)
        self.ledger: dict[int, int] = {}
        """Log row of a committed write -> the clock it must get."""
        self.folded: set[int] = set()
        self.counters = Counters()
        self.unsure: list[Noted] = []
        self.schema_steps = 0

    def wall_ms(self) -> int:
        """What this node's clock shows."""
        return self.world.now_ms + self.skew_ms

    def _julian_day(self, *_: object) -> float:
        """What `julianday` says, so that the agent's own log rows have the simulated time too."""
        return 2440587.5 + (self.wall_ms() + 0.5) / 86_400_000

    # ---- the agent's process ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new run on the file, as every start of an agent is."""
        world = self.world
        self.run = world.chance.getrandbits(47)
        self.runs = [*getattr(self, "runs", []), self.run]
        self.replica = WatchedReplica(self.path, world.options(self.name), self.counters, self.unsure)
        self.replica.db.create_scalar_function("julianday", self._julian_day, 1)
        self.replica.timekeeper = ServerTime(self)
        self.reader = LogReader(self.path, world.folder)
        with self.noting():
            self.replica.start_run(self.run, CLUSTER, self.name)
        self.replica.starting = False
        self.applier = Applier(self.replica, self.counters)
        self.assembler = Assembler(world.folder, self.counters)
        self._from_the_file()

    def _from_the_file(self) -> None:
        progress = self.replica.progress
        self.deliver_again()
        self.acknowledged = Sent(progress.published, progress.published_seq)
        self.read_again()

    def read_again(self) -> None:
        """The publisher starts again after what is acknowledged."""
        self.sent = self.acknowledged
        self.covers: dict[int, tuple[int, int]] = {}
        self.underway: list[Group] = []

    def stop(self) -> None:
        """The process is gone; nothing it had in memory remains."""
        self.assembler.reset(0, None)
        self.reader.close()
        self.replica.close()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What was folded counts once it is committed."""
        self.unsure.clear()
        self.replica.stamped.clear()
        yield
        self.world.oracle.note(self, self.unsure, self.replica.stamped)

    def write(self, work: Callable[[], object]) -> None:
        """A transaction of the agent."""
        with self.noting(), self.replica.transaction():
            work()

    # ---- the way out -----------------------------------------------------------------------------------------------

    def _group(self) -> Group | None:
        for _ in range(4):
            try:
                now_ms = self.replica.timekeeper.now_ms()
                return self.reader.read(self.run, self.sent, self.covers, self.replica.catalog, now_ms)
            except NotReadyError:
                self.write(self.replica.fold_all)
        raise FlawError(f"{self.name}: the reader is never ready")

    def publish(self, fate: str) -> str | None:
        """Read a group and send it; returns what happened, None if there was nothing to say.

        ``fate``: ok | late (acknowledged later) | unknown (stored, the sender does not learn it) | torn (not all of its
        chunks) | lost (nothing of it, while it seems to be under way) | twice (its bytes are stored twice).
        """
        group = self._group()
        if group is None:
            return None
        if group.unrowed:
            raise FlawError(f"{self.name}: alive without a row {group.unrowed}")
        pieces = list(group.slices(self.world.chunk_bytes))
        group.body.close()
        pieces = pieces[:-1] if len(pieces) > 1 and not pieces[-1] else pieces
        data = [
            encode_chunk(Chunk(FORMAT, group.run, group.id, group.lo, group.hi, piece, i, len(pieces)))
            for i, piece in enumerate(pieces)
        ]
        if fate == "torn":
            data = data[: self.world.chance.randrange(len(data))]
        if fate == "lost":
            data = []
        for _ in range(2 if fate == "twice" else 1):
            for message in data:
                self.world.stream.put(self.world.now_ms, message)
        self.sent, self.covers = Sent(group.hi, group.seq), group.covers or self.covers
        self.underway.append(group)
        if fate in ("ok", "twice") and self.underway[0] is group:
            self.acknowledge(1)
        elif fate in ("unknown", "torn"):
            self.read_again()
        self.world.hit(f"publish {fate}")
        self.world.hits["groups of several chunks"] += len(data) > 1
        return f"{group.rows} rows ({group.lo}, {group.hi}] to log row {group.seq} in {len(data)} chunks, {fate}"

    def acknowledge(self, count: int) -> None:
        """The stream acknowledges groups, in order, if it has them."""
        for group in self.underway[:count]:
            if not self.world.has(group.id):
                self.read_again()
                return
            self._published(group.hi, group.seq)
            self.underway = self.underway[1:]

    def _published(self, clock: int, seq: int) -> None:
        if clock >= self.acknowledged.clock:
            self.acknowledged = Sent(clock, max(seq, self.acknowledged.seq))
            self.replica.acknowledged(self.run, self.acknowledged.clock, self.acknowledged.seq)

    # ---- the way in ------------------------------------------------------------------------------------------------

    def pull(self, count: int) -> str:
        """Take messages from the stream and apply the groups they complete, in one transaction."""
        arrived: list[Arrived] = []
        for _ in range(count):
            if self.cursor >= self.world.stream.last:
                break
            self.cursor += 1
            time_ms, data = self.world.stream.messages[self.cursor - 1]
            chunk = decode_chunk(data)
            if chunk.run == self.run:
                if chunk.i == chunk.n - 1:
                    self._read_back(chunk.group)
                self.assembler.pass_over(self.cursor, chunk.group)
                continue
            group = self.assembler.add(self.cursor, time_ms, chunk)
            arrived += [group] if group is not None else []
        if not arrived:
            return f"to {self.cursor}, nothing whole"
        sequence, group_id = self.assembler.position
        try:
            with self.noting():
                outcome = self.applier.apply(arrived, Point("s", sequence, group_id))
        finally:
            for group in arrived:
                group.body.close()
        self.world.hit("groups applied", len(arrived))
        return f"to {self.cursor}, {len(arrived)} groups, {outcome.rows} rows"

    def _read_back(self, group_id: bytes) -> None:
        """An own group in the stream is an acknowledgement, if it is the oldest under way."""
        if self.underway and self.underway[0].id == group_id:
            self.acknowledge(1)

    def deliver_again(self) -> None:
        """The consumer is made anew from the position in the file, if the stream still has that message there."""
        progress = self.replica.progress
        sequence = progress.sequence if self._has_message(progress.sequence, progress.group_id) else 0
        self.assembler.reset(sequence, progress.group_id if sequence else None)
        self.cursor = sequence

    def _has_message(self, sequence: int, group_id: bytes | None) -> bool:
        messages = self.world.stream.messages
        if not 0 < sequence <= len(messages):
            return False
        return decode_chunk(messages[sequence - 1][1]).group == group_id

    def notice_loss(self) -> None:
        """The stream ends before what was read here, or has another message there: read it again from its beginning."""
        if self.cursor > self.world.stream.last:
            self.deliver_again()

    def refill(self, lo: dict[int, int]) -> None:
        """Say again what somebody may not have."""
        self.write(lambda: self.replica.refill(lo))
        progress = self.replica.progress
        self.acknowledged = Sent(progress.published, progress.published_seq)
        self.read_again()

    @contextmanager
    def refusing_commits(self) -> Iterator[None]:
        """The agent's next commit fails, as on a full disk."""
        self.replica.db.set_commit_hook(lambda: True)
        try:
            yield
        except apsw.ConstraintError as error:
            raise AbortedError from error
        finally:
            self.replica.db.set_commit_hook(None)

    # ---- the application -------------------------------------------------------------------------------------------

    def newest(self) -> int:
        """The newest log row."""
        return int(self.app.db.execute(f"SELECT coalesce(max(seq), 0) FROM {LOG}").fetchone()[0])

    def write_something(self) -> str:
        """One transaction of the application; each log row it commits is owed a version."""
        before = self.newest()
        told = self.app.transaction()
        self._owe(before)
        return told

    def _owe(self, before: int) -> None:
        clock, offset, folded = self.app.db.execute(
            "SELECT clock, clock_offset, folded_seq FROM __rsqlite_state"
        ).fetchone()
        for seq, stamp_ms in self.app.db.execute(f"SELECT seq, ts FROM {LOG} WHERE seq > ? ORDER BY seq", (folded,)):
            clock = max(clock + 1, (stamp_ms + offset) << CLOCK_SHIFT)
            if seq > before:
                self.ledger[seq] = clock


class World:
    """All nodes, the stream, the time and what has happened."""

    def __init__(self, seed: int, folder: Path) -> None:
        from simulation.oracle import Oracle

        self.seed, self.folder, self.chance = seed, folder, random.Random(seed)
        self.now_ms = START_MS
        self.stream = Stream()
        self.oracle = Oracle(self)
        self.history: list[str] = []
        self.hits: dict[str, int] = {}
        self.hits["groups of several chunks"] = 0
        self.chunk_bytes = self.chance.choice((150, 700, 4000, 1 << 19))
        self.lossy = False
        """Whether the stream lost messages: what was discarded may then not be recorded."""
        self.exact_notes = True
        """Whether no file was copied raw: rows without a key that were not folded are then there twice."""
        self.measured = self.chance.random() < 0.3
        """Whether the nodes know the server's time and correct their clocks by it."""
        self.journal = self.chance.choice(("WAL", "WAL", "DELETE", "TRUNCATE"))
        self.by_column = tuple(t for t in BY_COLUMN if self.chance.random() < 0.5)
        self.bulk_rows = self.chance.choice((1, 6, 65))
        self.image_rows = self.chance.choice((2, 5, 65))
        self.slice_rows = self.chance.choice((3, 50, 5000))
        self.unfolded_max = self.chance.choice((5, 256))
        self.nodes = [self._found(number) for number in range(self.chance.choice((2, 2, 3, 3, 4)))]
        for node in self.nodes:
            node.start()

    def options(self, name: str) -> CaptureOptions:
        """The configuration, the same on all nodes."""
        policies = tuple(Policy(table=table, merge=Merge.COLUMN_LWW) for table in self.by_column)
        return CaptureOptions(name, Tables(policies=policies))

    def _found(self, number: int) -> Node:
        node = Node(self, number, self.folder / f"n{number}.db")
        node.app.db.execute(f"PRAGMA journal_mode = {self.journal}")
        node.app.db.executescript(SCHEMA)
        return node

    def clone(self, node: Node) -> Node:
        """A raw copy of the volume starts beside the original."""
        number = len(self.nodes)
        path = self.folder / f"n{number}.db"
        node.app.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(node.path, path)
        copy = Node(self, number, path)
        copy.app.column_added = node.app.column_added
        copy.ledger, copy.folded = dict(node.ledger), set(node.folded)
        self.nodes.append(copy)
        copy.start()
        return copy

    def has(self, group_id: bytes) -> bool:
        """Whether the stream has a whole group."""
        chunks = [decode_chunk(data) for _, data in self.stream.messages]
        found = {chunk.i for chunk in chunks if chunk.group == group_id}
        return any(chunk.group == group_id and len(found) == chunk.n for chunk in chunks)

    def hit(self, what: str, count: int = 1) -> None:
        """Count that something really happened."""
        self.hits[what] = self.hits.get(what, 0) + count

    def room(self) -> bool:
        """Whether there may be one more node."""
        return len(self.nodes) < NODES_MAX

    @contextmanager
    def thresholds(self) -> Iterator[None]:
        """Small groups take the ways that are meant for large ones."""
        few = {
            (log_reader, "IMAGE_ROWS_MIN"): self.image_rows,
            (log_reader, "SLICE_ROWS"): self.slice_rows,
            (log_reader, "UNFOLDED_ROWS_MAX"): self.unfolded_max,
            (bulk, "ROWS_MIN"): self.bulk_rows,
            (bulk, "_STEP_ROWS_MIN"): min(self.bulk_rows, 8),
        }
        kept = {place: getattr(*place) for place in few}
        try:
            for (module, name), value in few.items():
                setattr(module, name, value)
            yield
        finally:
            for (module, name), value in kept.items():
                setattr(module, name, value)

    def close(self) -> None:
        """Close every connection: the agents' first, since the last one of the application removes the WAL."""
        for node in self.nodes:
            node.stop()
        for node in self.nodes:
            node.app.db.close()
