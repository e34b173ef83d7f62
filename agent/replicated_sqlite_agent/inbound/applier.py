"""Applies groups: one transaction moves rows, versions and positions together. Runs on the writer thread.

Whatever the order of arrival, a group is applied exactly when everything its writer had seen is here; until then it is
parked and the gap is reported, so that somebody says again what is missing.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import apsw
import msgspec
import structlog

from replicated_sqlite_agent.changes import Key, RowState, Stretch, Vector, wall_ms
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.exact import Row, select
from replicated_sqlite_agent.database.identifiers import PREFIX
from replicated_sqlite_agent.inbound import staging
from replicated_sqlite_agent.inbound.assembler import Arrived
from replicated_sqlite_agent.merge.resolver import Knowledge, resolve
from replicated_sqlite_agent.replica import conflicts
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.replica.state import FOLD_ROWS_MAX, Replica
from replicated_sqlite_agent.replica.uniqueness import settle
from replicated_sqlite_agent.wire import (
    Block,
    Header,
    WireError,
    decode_frames,
    encode_frame,
    image_columns,
    image_schema,
    row_from_wire,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the stream: everything up to it is applied here or kept in this file."""

    stream: str
    sequence: int
    group_id: bytes | None


@dataclass(slots=True)
class Outcome:
    """What applying a batch has brought to light."""

    gap: bool = False
    """Something is missing here that the stream will not bring: ask for a refill."""
    lost: bool = False
    """The stream itself is another one, or has lost messages."""
    heard: dict[str, tuple[int, Vector]] = field(default_factory=dict)
    """node -> (run, vector) as reported by heartbeats."""
    rows: int = 0


class _SchemaMovedError(Exception):
    """The application changed its schema after images were staged for the one before."""


class Applier:
    """Turns arrived groups into rows of one replica."""

    def __init__(self, replica: Replica, counters: Counters, max_ahead_s: float = 900.0) -> None:
        """``max_ahead_s``: groups whose clock is further ahead of the stream server's time wait for it."""
        self.replica, self.counters, self._max_ahead_ms = replica, counters, int(max_ahead_s * 1000)
        self._any_parked = True
        """False spares the look for parked groups in each transaction; found out by housekeeping."""
        self.ahead: dict[int, int] = {}
        """run -> clock: runs that wait because their clock is too far ahead."""
        self.paused: dict[str, str] = {}
        """table -> why its changes wait, one sentence."""
        self.shown: Vector = {}
        """What readers of the file see, per run: the positions as of the last commit. Replaced whole, so any thread may
        read it."""
        staging.prepare(replica.db)
        replica.on_install = self._schema_changed
        self._retry_paused = True  # the schema may have changed while no agent ran

    # ---- batches -------------------------------------------------------------------------------------------------

    def apply(self, groups: list[Arrived], point: Point) -> Outcome:
        """Apply groups in order of the stream and remember ``point``. All or nothing."""
        while True:
            self._fold_backlog()
            try:
                return self._apply(groups, point)
            except _SchemaMovedError:
                self.replica.follow_schema()

    def _apply(self, groups: list[Arrived], point: Point) -> Outcome:
        outcome = Outcome()
        opened = [(group, *self._open(group)) for group in groups]
        staged_for = self.replica.catalog
        stages = self._stage(opened)
        try:
            with self._transaction():
                if self.replica.catalog is not staged_for:
                    raise _SchemaMovedError
                self.replica.fold_all()
                for group, header, blocks in opened:
                    self._group(group, header, blocks, stages, outcome)
                self._unpark(outcome)
                self._resume_paused(outcome)
                self.replica.progress = replace(
                    self.replica.progress, stream=point.stream, sequence=point.sequence, group_id=point.group_id
                )
        finally:
            for stage in stages.values():
                stage.drop()
        self.counters.applied_rows += outcome.rows
        self.show()
        return outcome

    def show(self) -> None:
        """After a commit: what is applied is visible now."""
        self.shown = self.replica.runs.vector()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction of the replica; undone, rows that wait for a schema are looked at again."""
        try:
            with self.replica.transaction():
                yield
        except BaseException:
            self._retry_paused = True
            raise

    def _fold_backlog(self) -> None:
        """A long log is folded in transactions of its own, so that none holds the write lock for long."""
        while self.replica.unfolded() > FOLD_ROWS_MAX:
            with self.replica.transaction():
                self.replica.fold(FOLD_ROWS_MAX)

    def _open(self, group: Arrived) -> tuple[Header, Iterator[Block]]:
        group.body.seek(0)
        frames = decode_frames(group.body)
        header = next(frames, None)
        if not isinstance(header, Header):
            raise WireError("a group does not begin with its header")
        return header, cast(Iterator[Block], frames)

    def _stage(self, opened: list[tuple[Arrived, Header, Iterator[Block]]]) -> dict[tuple[bytes, str], staging.Stage]:
        """Copy the images of all groups into TEMP tables, before the write lock is taken."""
        stages: dict[tuple[bytes, str], staging.Stage] = {}
        for position, (group, header, blocks) in enumerate(opened):
            plain: list[Block] = []
            for block in blocks:
                if block.image is None or not self._fits(block):
                    plain.append(block)
                    continue
                self._know_runs(block)
                key = (group.id, block.table)
                if key not in stages:
                    stages[key] = staging.Stage(self.replica.db, len(stages), len(block.key), len(block.columns))
                stages[key].add(block, self.replica.runs)
                head = Block(block.table, block.digest, block.key, block.columns, {}, 0)
                if not any(b.table == head.table and b.count == 0 for b in plain):
                    plain.append(head)
            opened[position] = (group, header, iter(plain))
        return stages

    def _know_runs(self, block: Block) -> None:
        if any(run not in self.replica.runs.by_run for run in block.runs.values()):
            with self.replica.transaction():
                for run in block.runs.values():
                    self.replica.runs.id_of(self.replica.db, run)

    # ---- one group -------------------------------------------------------------------------------------------------

    def _group(
        self,
        group: Arrived,
        header: Header,
        blocks: Iterator[Block],
        stages: dict[tuple[bytes, str], staging.Stage],
        outcome: Outcome,
    ) -> None:
        replica, runs, own = self.replica, self.replica.runs, self.replica.progress.run
        have = runs.position(group.run)
        contexts = header.contexts()
        seen = contexts[-1].seen if contexts else {}
        if header.heartbeat:
            outcome.heard[header.node] = (group.run, header.reported)
            if header.clean and any(
                clock > runs.position(run) for run, clock in seen.items() if run not in (own, group.run)
            ):
                outcome.gap = True
        elif header.hi <= have and not header.covers:
            self.counters.duplicate_groups += 1
            return
        if self._too_far_ahead(group.run, header.hi):
            self._park(group, header)
            return
        if self._missing(group.run, header, seen, rows=not header.heartbeat):
            outcome.gap = outcome.gap or group.run not in self.ahead
            self.counters.gaps += 1
            self._park(group, header)
            return
        knowledge = Knowledge(group.run, contexts, runs.vector(), own, {r.run: r.context for r in runs.by_run.values()})
        runs.id_of(replica.db, group.run)
        for block in blocks:
            stage = stages.get((group.id, block.table)) if block.count == 0 else None
            outcome.rows += self._block(block, stage, knowledge, contexts)
        self._advance(group, header, seen)
        self.counters.applied_groups += 1

    def _too_far_ahead(self, run: int, clock: int) -> bool:
        """Whether a group must wait for time: taken at once, its clock would win for ever and pull all others along."""
        now_ms = self.replica.timekeeper.now_ms()
        ahead = now_ms is not None and wall_ms(clock) > now_ms + self._max_ahead_ms
        if ahead and run not in self.ahead:
            self.counters.quarantined_runs += 1
        if ahead:
            self.ahead[run] = clock
        elif self.ahead.get(run, clock + 1) <= clock:
            del self.ahead[run]
        return ahead

    def _missing(self, run: int, header: Header, seen: Vector, *, rows: bool) -> bool:
        """Whether something that this group builds on is not here: causes come before effects."""
        runs, own = self.replica.runs, self.replica.progress.run
        if header.lo > runs.position(run):
            return True
        if any(lo > runs.position(other) for other, (lo, _) in header.covers.items() if other != own):
            return True
        return rows and any(
            clock > max(runs.position(other), header.covers.get(other, (0, 0))[1])
            for other, clock in seen.items()
            if other not in (run, own)
        )

    def _advance(self, group: Arrived, header: Header, seen: Vector) -> None:
        replica, runs = self.replica, self.replica.runs
        own = replica.progress.run
        runs.advance(replica.db, group.run, header.hi, seen, header.node)
        for run, (lo, hi) in header.covers.items():
            if run != own and runs.position(run) >= lo:
                runs.advance(replica.db, run, hi)
        if header.hi > replica.progress.clock:
            replica.progress = replace(replica.progress, clock=header.hi)
        runs.reach(own, replica.progress.clock)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _rows(self, block: Block) -> Rows | None:
        captured = self.replica.catalog.named(block.table)
        return self.replica.rows_of(captured) if captured is not None else None

    def _fits(self, block: Block) -> bool:
        """Whether the block's rows can be written by SQL: same key, same columns in the same order."""
        rows = self._rows(block)
        return (
            rows is not None
            and not rows.table.keyless
            and rows.table.key_is_exact
            and block.key == list(rows.table.key_names)
            and block.columns == list(rows.table.columns)
        )

    def _refusal(self, block: Block) -> str | None:
        """Why a block cannot be applied here yet, one sentence."""
        rows = self._rows(block)
        if rows is None:
            return f"table {block.table} does not exist here"
        expected = ["run", "number"] if rows.table.keyless else list(rows.table.key_names)
        if block.key != expected:
            return f"table {block.table} has another primary key here"
        if unknown := [c for c in block.columns if c not in rows.table.columns]:
            return f"table {block.table} has no column {unknown[0]} here"
        return None

    def _block(
        self, block: Block, stage: staging.Stage | None, knowledge: Knowledge, contexts: tuple[Stretch, ...]
    ) -> int:
        reason = self._refusal(block)
        if reason is not None:
            self._pause(block, knowledge.sender, contexts, reason)
            return 0
        rows = self._rows(block)
        assert rows is not None
        if stage is not None:
            return self._staged(rows, stage, knowledge, contexts)
        return self._one_by_one(rows, _wire_rows(block), knowledge)

    def _staged(self, rows: Rows, stage: staging.Stage, knowledge: Knowledge, contexts: tuple[Stretch, ...]) -> int:
        if rows.table.unique and rows.any_hidden():
            return self._one_by_one(rows, self._staged_rows(rows, stage), knowledge)
        db = self.replica.db
        staging.know(db, rows.runs, knowledge.sender, contexts[0].seen if contexts else {})
        db.execute("SAVEPOINT staged")
        try:
            contested = staging.apply_plain(rows, stage, self.replica.progress.horizon)
        except apsw.ConstraintError:
            db.execute("ROLLBACK TO staged")
            return self._one_by_one(rows, self._staged_rows(rows, stage), knowledge)
        finally:
            db.execute("RELEASE staged")
        width = len(rows.table.key)
        decoded = ((row[:width], self._staged_state(rows, row[width:])) for row in contested)
        self._one_by_one(rows, decoded, knowledge)
        return stage.count

    def _staged_rows(self, rows: Rows, stage: staging.Stage) -> Iterator[tuple[Key, RowState]]:
        width = len(rows.table.key)
        for row in stage.rows():
            yield row[:width], self._staged_state(rows, row[width:])

    def _staged_state(self, rows: Rows, row: Row) -> RowState:
        state = rows.decode_entry(row[:6])
        values = dict(zip(rows.table.columns, row[6:], strict=True)) if state.alive else {}
        return RowState(state.life, state.alive, state.update, state.columns, values)

    def _one_by_one(self, rows: Rows, incoming: Iterator[tuple[Key, RowState]], knowledge: Knowledge) -> int:
        """Resolve and write row by row; afterwards decide who is shown where rows collide under UNIQUE."""
        table, horizon = rows.table, self.replica.progress.horizon
        columns = table.columns
        changed: list[Key] = []
        collided = bool(table.unique) and rows.any_hidden()
        count = 0
        for key, state in incoming:
            count += 1
            local, rowid = rows.state(key)
            decision = resolve(state, local, knowledge, columns, horizon)
            if decision.losses:
                conflicts.record(
                    self.replica.db, self.counters, table.name, key, decision.losses, self.replica.is_own_run
                )
                if local is not None and any(loss.rule == "later insert" for loss in decision.losses):
                    self.counters.key_collisions += 1
            if decision.state is not None:
                collided = self._put(rows, key, decision.state, rowid) or collided
                changed.append(key)
        if collided and not table.keyless:
            settle(rows, changed)
        return count

    def _put(self, rows: Rows, key: Key, state: RowState, rowid: int | None) -> bool:
        """Write a row and its versions; True if the table refused it, so that it is hidden for now."""
        lying = (rowid,) if rows.table.keyless else key
        refused = False
        if not state.alive:
            if not rows.table.keyless or rowid is not None:
                rows.erase(lying)
            rows.unhide(key)
            rowid = None
        else:
            if not rows.table.keyless and state.values.keys() != set(rows.columns):
                rows.erase(
                    lying
                )  # a new life by a writer that does not know all columns: they begin with their default
            try:
                rowid = rows.write(key, state.values, rowid)
                rows.unhide(key)
            except apsw.ConstraintError:
                if not rows.table.keyless or rowid is not None:
                    rows.erase(lying)
                rows.hide(key, state.values)
                refused, rowid = True, None
        rows.put_entry(key, state, rowid)
        return refused

    # ---- what has to wait ------------------------------------------------------------------------------------------

    def _park(self, group: Arrived, header: Header) -> None:
        group.body.seek(0)
        self._any_parked = True
        self.replica.db.execute(
            f"INSERT OR IGNORE INTO {PREFIX}parked(run, lo, hi, group_id, body) VALUES (?, ?, ?, ?, ?)",
            (group.run, header.lo, header.hi, group.id, group.body.read()),
        )

    def _unpark(self, outcome: Outcome) -> None:
        """Apply parked groups that now fit, until none does."""
        if not self._any_parked:
            return
        query = f"SELECT id, run, lo, hi, group_id FROM {PREFIX}parked ORDER BY lo, id"
        waiting = all_rows(self.replica.db, query)
        # Not after a group was taken out: this transaction may yet be undone.
        self._any_parked = bool(waiting)
        progress = True
        while progress:
            progress = False
            for number, run, lo, hi, group_id in waiting:
                if lo > self.replica.runs.position(run):
                    continue
                body = scalar(self.replica.db, f"SELECT body FROM {PREFIX}parked WHERE id = ?", (number,))
                group = Arrived(run, group_id, lo, hi, len(body), io.BytesIO(body))
                header, _ = self._open(group)
                contexts = header.contexts()
                seen = contexts[-1].seen if contexts else {}
                if self._too_far_ahead(run, hi) or self._missing(run, header, seen, rows=not header.heartbeat):
                    continue
                self.replica.db.execute(f"DELETE FROM {PREFIX}parked WHERE id = ?", (number,))
                header, blocks = self._open(group)
                self._group(group, header, (_as_rows(b) for b in blocks), {}, outcome)
                progress = True
            waiting = all_rows(self.replica.db, query) if progress else []

    def parked(self) -> int:
        """How many groups wait for what came before them."""
        return int(scalar(self.replica.db, f"SELECT count(*) FROM {PREFIX}parked") or 0)

    def force_gaps(self) -> int:
        """Nobody could fill the gaps: take the parked groups as they are. Rows stay right; returns how many groups."""
        replica, runs = self.replica, self.replica.runs
        forced = 0
        with replica.transaction():
            replica.fold_all()
            outcome = Outcome()
            for (body,) in all_rows(replica.db, f"SELECT body FROM {PREFIX}parked ORDER BY lo"):
                header = next(decode_frames(io.BytesIO(body)))
                assert isinstance(header, Header)
                floors = {run: lo for run, (lo, _) in header.covers.items()}
                for stretch in header.contexts()[-1:]:
                    floors |= stretch.seen
                for run, clock in floors.items():
                    if run != replica.progress.run:
                        runs.advance(replica.db, run, clock)
                forced += 1
            query = f"SELECT run, max(lo) FROM {PREFIX}parked GROUP BY run"
            for run, lo in all_rows(replica.db, query):
                runs.advance(replica.db, run, lo)
            self._unpark(outcome)
        self.counters.forced_gaps += forced
        return forced

    def _pause(self, block: Block, run: int, contexts: tuple[Stretch, ...], reason: str) -> None:
        """The schemas differ: keep the rows until they agree. States can be joined later in any order."""
        if block.table not in self.paused:
            log.warning("changes wait until the schemas agree", reason=reason)
        self.paused[block.table] = reason
        block = _as_rows(block)
        self.replica.db.execute(
            f"INSERT INTO {PREFIX}paused(name, run, stretches, rows, block) VALUES (?, ?, ?, ?, ?)",
            (block.table, run, msgspec.msgpack.encode(contexts), block.count, encode_frame(block)),
        )

    def _schema_changed(self) -> None:
        self._retry_paused = True

    def _resume_paused(self, outcome: Outcome) -> None:
        """After a change of the schema here: join the rows that waited for it."""
        if not self._retry_paused:
            return
        self._retry_paused = False
        self.paused.clear()
        runs, own = self.replica.runs, self.replica.progress.run
        query = f"SELECT id, run, stretches, block FROM {PREFIX}paused ORDER BY id"
        for number, run, stretches, frame in all_rows(self.replica.db, query):
            block = next(decode_frames(io.BytesIO(frame)))
            assert isinstance(block, Block)
            reason = self._refusal(block)
            if reason is not None:
                self.paused[block.table] = reason
                continue
            contexts = tuple(Stretch(*s) for s in msgspec.msgpack.decode(stretches, type=list[tuple[int, Vector]]))
            known = {r.run: r.context for r in runs.by_run.values()}
            knowledge = Knowledge(run, contexts, runs.vector(), own, known)
            rows = self._rows(block)
            assert rows is not None
            outcome.rows += self._one_by_one(rows, _wire_rows(block), knowledge)
            self.replica.db.execute(f"DELETE FROM {PREFIX}paused WHERE id = ?", (number,))

    def housekeeping(self) -> None:
        """Fold what is there, join what waited for a schema, trim the log. Once a second."""
        self._fold_backlog()
        outcome = Outcome()
        with self._transaction():
            self.replica.fold_all()
            self._resume_paused(outcome)
            if self.ahead:
                self._unpark(outcome)
            self.replica.trim()
        self.show()

    def dead_letter(self, subject: str, sequence: int, reason: str, body: bytes) -> None:
        """Keep a message that cannot be applied, with its reason; its run is held as by a gap until a refill."""
        with self.replica.transaction():
            self.replica.db.execute(
                f"INSERT OR IGNORE INTO {PREFIX}dead_letters(subject, sequence, reason, at_ms, body) "
                "VALUES (?, ?, ?, ?, ?)",
                (subject, sequence, reason, time.time_ns() // 1_000_000, body),
            )
        self.counters.dead_letters += 1


def _wire_rows(block: Block) -> Iterator[tuple[Key, RowState]]:
    width = len(block.key)
    for row in _as_rows(block).rows or ():
        yield row_from_wire(row, width, block.columns, block.runs)


def _as_rows(block: Block) -> Block:
    """The same block with its image read into rows."""
    if block.image is None:
        return block
    db = apsw.Connection(":memory:")
    db.deserialize("main", block.image)
    width, columns = len(block.key), len(block.columns)
    try:
        if all_rows(db, "SELECT type, name, sql FROM sqlite_schema") != [("table", "r", image_schema(width, columns))]:
            raise WireError(f"an image for table {block.table} holds something else than rows")
        found = select(db, image_columns(width, columns), "FROM r")
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise WireError(f"an image for table {block.table} is damaged: {error}") from error
    finally:
        db.close()
    rows = [list(row) if not row[width + 2] else list(row[: width + 6]) for row in found]
    return Block(block.table, block.digest, block.key, block.columns, block.runs, block.count, rows)
