"""One replica: the file, how far it is, and the fold that gives versions to local writes.

All methods run on the writer thread. Progress and positions are kept in memory as well; after a transaction that was
rolled back they are read again, so memory never runs ahead of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import apsw

from replicated_sqlite_agent.capture.install import Captured, CaptureOptions, Catalog, install
from replicated_sqlite_agent.capture.triggers import KIND_FACTOR, LOG, NOW_MS
from replicated_sqlite_agent.changes import Key, Kind, Mention, Stretch, Vector, advance
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import all_rows, open_database, scalar, write_transaction
from replicated_sqlite_agent.database.exact import Row, execute, select
from replicated_sqlite_agent.database.identifiers import PREFIX
from replicated_sqlite_agent.database.own_tables import (
    FORMAT,
    Progress,
    Runs,
    create,
    exists,
    file_format,
    key_columns,
    read_progress,
    write_progress,
)
from replicated_sqlite_agent.database.schema import read_schema
from replicated_sqlite_agent.errors import FileUnusableError
from replicated_sqlite_agent.replica import bulk
from replicated_sqlite_agent.replica.keyless import fold_keyless, renew_rowids
from replicated_sqlite_agent.replica.local import fold_table
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.replica.uniqueness import settle
from replicated_sqlite_agent.timekeeper import Timekeeper

FOLD_ROWS_MAX = 4_000
"""Log rows folded in one transaction while the application writes: about 8 ms of the write lock."""

TRIM_ROWS_MAX = 20_000
"""Log rows deleted in one transaction."""


OFFSET_TOLERANCE_MS = 3
"""A clock this near to the server's is not corrected: the measurement is no better."""

AHEAD_MS_MAX = 1_000
"""Local writes whose corrected time is further ahead of the server's than this were stamped by a clock that jumped."""


class FileReplacedError(Exception):
    """The file at the path is no longer the one this run began with."""


class Replica:
    """The writer's view of one database file."""

    def __init__(self, path: Path, options: CaptureOptions, counters: Counters) -> None:
        self.path, self.options, self.counters = path, options, counters
        self.db = open_database(path)
        self.progress = Progress("", "", 0)
        self.runs = Runs([])
        self.catalog = Catalog(-1, {}, {})
        self.tables: dict[int, Rows] = {}
        self._acknowledged: tuple[int, int, int] = (0, 0, 0)
        self.on_install: Callable[[], None] = lambda: None
        self.timekeeper = Timekeeper()
        self.writing = False
        """Whether this agent holds the write lock: what happens to the file now is its own doing."""
        self.last_write = 0
        """Clock of the last local write that was folded in this run, 0 if there was none."""

    @classmethod
    def of_copy(cls, path: Path, options: CaptureOptions, counters: Counters) -> Replica:
        """A copy of a replicated file under its own run, with everything folded."""
        replica = cls(path, options, counters)
        with write_transaction(replica.db):
            replica._read()
            replica._use(install(replica.db, options, founding=False))
            replica.fold_all()
            replica._store()
        return replica

    # ---- the life of a run -------------------------------------------------------------------------------------

    def start_run(self, run: int, cluster: str, node: str) -> None:
        """Begin a new run on this file: install capture, announce what the former run may not have published.

        Every start of an agent is a new run, so that a restored copy or a cloned volume can never give one version to
        two values. Raises FileUnusableError if the file belongs to another cluster or a newer format.
        """
        with write_transaction(self.db, self.counters.write_lock_s.append):
            if not exists(self.db):
                create(self.db)
                self.progress = Progress(cluster, node, run)
                write_progress(self.db, self.progress)
                self.runs = Runs.read(self.db)
                self._use(install(self.db, self.options, founding=True))
            else:
                self._check_owner(cluster)
                create(self.db)
                self.runs = Runs.read(self.db)
                self.progress = replace(read_progress(self.db), node=node)
                self._install()
                self._succeed(run)
            self.runs.advance(self.db, run, self.progress.clock, node=node)
            self._fold_all()
            self._store()
        self.counters.runs_started += 1

    def _check_owner(self, cluster: str) -> None:
        found = file_format(self.db)
        if found > FORMAT:
            raise FileUnusableError(
                f"{self.path} was written by a newer agent (format {found}, ours is {FORMAT}): upgrade this agent"
            )
        owner = read_progress(self.db).cluster
        if owner != cluster:
            raise FileUnusableError(
                f"{self.path} belongs to cluster {owner}, not {cluster}: set `cluster` to {owner}, "
                "or run `rsqlite-agent uninstall` on the file first"
            )

    def _succeed(self, run: int) -> None:
        """Take over from the former run of this file: what it folded but may not have published is said again."""
        old = self.progress
        published_seq = min(old.published_seq, old.folded_seq)
        keys = key_columns(self._log_width())
        self.db.execute(
            f"INSERT INTO {LOG}(top, ts, mask, {keys}) SELECT DISTINCT top / {KIND_FACTOR} * {KIND_FACTOR} + "
            f"{Kind.SAY_AGAIN}, {NOW_MS}, 0, {keys} FROM {LOG} WHERE seq > ? AND seq <= ?",
            (published_seq, old.folded_seq),
        )
        covers = dict(old.covers)
        if old.run == 0:  # a fresh member's file has no former run
            self.progress = replace(old, run=run, published=0)
            return
        if old.clock > old.published:
            covers[old.run] = (min(old.published, covers.get(old.run, (old.published, 0))[0]), old.clock)
        self.runs.advance(self.db, old.run, old.clock, self.vector_of_others())
        self.progress = replace(old, run=run, published=0, published_seq=published_seq, stretches=(), covers=covers)
        self._acknowledged = (0, 0, 0)

    # ---- transactions ------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction on the file of this run, with capture fitting the present schema."""
        catalog, tables = self.catalog, self.tables
        try:
            with write_transaction(self.db, self.counters.write_lock_s.append):
                self.writing = True
                self._check_run()
                before = self.progress
                self._take_acknowledgement()
                if scalar(self.db, "PRAGMA schema_version") != self.catalog.schema_version:
                    self._install()
                yield
                if self.progress is not before:
                    self._store()
        except BaseException:
            self.catalog, self.tables = catalog, tables
            self._reload()
            raise
        finally:
            self.writing = False

    def follow_schema(self) -> None:
        """Make capture fit the present schema, in a transaction of its own, if the application has changed it."""
        if scalar(self.db, "PRAGMA schema_version") != self.catalog.schema_version:
            with self.transaction():
                return

    def _check_run(self) -> None:
        if scalar(self.db, f"SELECT run FROM {PREFIX}state") != self.progress.run:
            raise FileReplacedError(f"{self.path} was replaced by another copy")

    def _read(self) -> None:
        """Progress and runs as the file has them; its own run is as far as its clock."""
        self.runs, self.progress = Runs.read(self.db), read_progress(self.db)
        if self.progress.run in self.runs.by_run:
            self.runs.reach(self.progress.run, self.progress.clock)

    def _store(self) -> None:
        self.runs.store(self.db)
        write_progress(self.db, self.progress)

    def _reload(self) -> None:
        """Memory follows the file after a rollback."""
        try:
            self._read()
        except apsw.Error:
            return  # the file is gone or replaced: the caller's exception says so
        for rows in self.tables.values():
            rows.runs = self.runs

    def acknowledged(self, run: int, published: int, published_seq: int) -> None:
        """The stream has everything up to here. Called from another thread; stored by the next transaction."""
        self._acknowledged = max(
            self._acknowledged, (run, published, published_seq), key=lambda a: (a[0] == run, *a[1:])
        )

    def _take_acknowledgement(self) -> None:
        run, published, published_seq = self._acknowledged
        if run != self.progress.run or published < self.progress.published:
            return
        if (published, published_seq) == (self.progress.published, self.progress.published_seq):
            return
        covers = self.progress.covers if published == self.progress.published else {}
        self.progress = replace(
            self.progress,
            published=published,
            published_seq=max(published_seq, self.progress.published_seq),
            stretches=tuple(s for s in self.progress.stretches if s.clock > published),
            covers=covers,
        )

    # ---- schema ------------------------------------------------------------------------------------------------

    def _use(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.tables = {number: Rows(self.db, captured, self.runs) for number, captured in catalog.by_number.items()}
        for rows in self.tables.values():
            rows.may_hide = rows.any_hidden()
        self.counters.schema_installs += 1
        self.on_install()

    def _install(self) -> None:
        """The schema changed: fold by the old capture what it logged, then make capture fit."""
        present = read_schema(self.db).tables
        usable = {
            number
            for number, captured in self.catalog.by_number.items()
            if (now := present.get(captured.table.name)) is not None and now.key == captured.table.key
        }
        if self.catalog.by_number:
            while self.fold(FOLD_ROWS_MAX, usable):
                pass
        unfolded = f"SELECT DISTINCT top / {KIND_FACTOR} FROM {LOG} WHERE seq > ?"
        pending = {row[0] for row in all_rows(self.db, unfolded, (self.progress.folded_seq,))}
        self._use(install(self.db, self.options, founding=False))
        for rows in self.tables.values():
            if rows.table.unique and rows.any_hidden():
                settle(rows, [])  # what was just folded may have made room, and the UNIQUE indexes may be others
            if rows.table.keyless and rows.captured.number not in pending:
                renew_rowids(self.db, rows, LOG, rows.captured.number * KIND_FACTOR)

    def rows_of(self, captured: Captured) -> Rows:
        """The rows of a captured table."""
        return self.tables[captured.number]

    # ---- the fold ----------------------------------------------------------------------------------------------

    def _log_width(self) -> int:
        return max((len(c.table.key) for c in self.catalog.by_number.values()), default=1)

    def vector_of_others(self) -> Vector:
        """What this replica has applied of all runs but its own."""
        vector = self.runs.vector()
        vector.pop(self.progress.run, None)
        return vector

    def is_own_run(self, run: int) -> bool:
        """Whether a run is this one or a former one of this node."""
        known = self.runs.by_run.get(run)
        return run == self.progress.run or (known is not None and known.node == self.progress.node)

    def token_vector(self) -> Vector:
        """What this replica shows, folded: every run's position, and its own run at its last write."""
        own = {self.progress.run: self.last_write} if self.last_write else {}
        return self.vector_of_others() | own

    def unfolded(self) -> int:
        """How many log rows wait to be folded."""
        newest = scalar(self.db, f"SELECT max(seq) FROM {LOG}")
        return max(0, (newest or 0) - self.progress.folded_seq)

    def fold_all(self) -> None:
        """Give versions to every local write so far. Part of each transaction that merges anything."""
        self._fold_all()

    def _fold_all(self) -> None:
        while self.fold(FOLD_ROWS_MAX):
            pass

    def fold(self, rows_max: int, usable: set[int] | None = None) -> int:
        """Give versions to the next log rows, at most this many; returns how many they were.

        A function of stored facts only: see merge/fold.py. ``usable``: numbers of the tables that still exist as the
        capture knew them.
        """
        upto = self._next_to_fold(rows_max)
        if upto is None:
            return 0
        if upto - self.progress.folded_seq >= bulk.ROWS_MIN and (folded := self._fold_many(upto, usable)):
            return folded
        width = self._log_width()
        columns = ["seq", "top", "ts", "mask", *(f"k{i + 1}" for i in range(width))]
        rest = f"FROM {LOG} WHERE seq > ? AND seq <= ? ORDER BY seq"
        rows = select(self.db, columns, rest, (self.progress.folded_seq, upto))
        mentions, clock = stamp(rows, self.progress, {n: len(c.table.key) for n, c in self.catalog.by_number.items()})
        for number, by_key in mentions.items():
            if number not in self.tables or (usable is not None and number not in usable):
                continue  # the application dropped the table with all its rows
            self._fold_one(self.tables[number], by_key, settle_now=usable is None)
        return self._folded(upto, clock, len(rows))

    def _next_to_fold(self, rows_max: int) -> int | None:
        """The log row up to which the next fold goes, None if there is nothing to fold."""
        folded = self.progress.folded_seq
        newest = scalar(self.db, f"SELECT max(seq) FROM {LOG}") or 0
        if newest <= folded:
            return None
        upto = scalar(self.db, f"SELECT max(seq) FROM {LOG} WHERE seq > ? AND seq <= ?", (folded, folded + rows_max))
        if upto is None:  # log rows were taken out: the next one lies further on
            upto = scalar(self.db, f"SELECT min(seq) FROM {LOG} WHERE seq > ?", (folded,))
        self._correct_jump(upto)
        return int(upto)

    def _fold_many(self, upto: int, usable: set[int] | None) -> int:
        """`fold` by SQL where it can; 0 if it cannot."""
        low = self.progress.folded_seq
        found, said_of = bulk.survey(self.db, low, upto, self.progress)
        if found is None:
            return 0
        run_id = self.runs.id_of(self.db, self.progress.run)
        for number, said in said_of.items():
            if number not in self.tables or (usable is not None and number not in usable):
                continue  # the application dropped the table with all its rows
            rows = self.tables[number]
            if bulk.sequential(rows, said, low, upto):
                bulk.fold(rows, rows.side, found, run_id)
            else:
                self._fold_one(rows, bulk.mentions(rows, low, upto, found), settle_now=usable is None)
        return self._folded(upto, found[-1].last + found[-1].ahead, sum(s.last - s.first + 1 for s in found))

    def _folded(self, upto: int, clock: int, count: int) -> int:
        """Note how far the fold has come; returns ``count``."""
        self.progress = replace(
            self.progress,
            folded_seq=upto,
            clock=clock,
            stretches=extended(self.progress.stretches, Stretch(clock, self.vector_of_others())),
        )
        self.runs.reach(self.progress.run, clock)
        self.last_write = clock
        self.counters.folded_rows += count
        return count

    def _fold_one(self, rows: Rows, by_key: dict[Key, list[Mention]], *, settle_now: bool) -> None:
        if rows.table.keyless:
            fold_keyless(rows, by_key, self.progress.run)
            return
        for key in [key for key in by_key if None in key]:
            del by_key[key]
            self.counters.rows_without_key += 1
        fold_table(rows, by_key, self.progress.run)
        if settle_now and rows.table.unique and rows.any_hidden():
            settle(rows, list(by_key))

    def trim(self) -> int:
        """Forget log rows that are folded and published, never the newest one: its number would be given out again."""
        upto = min(self.progress.published_seq, self.progress.folded_seq)
        first = scalar(self.db, f"SELECT min(seq) FROM {LOG}")
        if first is None or first > upto:
            return 0
        self.db.execute(
            f"DELETE FROM {LOG} WHERE seq <= ? AND seq < (SELECT max(seq) FROM {LOG})",
            (min(upto, first + TRIM_ROWS_MAX),),
        )
        return self.db.changes()

    def follow_clock(self) -> None:
        """From the next local write on, wall time is corrected as now measured; earlier ones are folded first.

        An offset is a stored fact: the publisher computes with the same one.
        """
        offset = self.timekeeper.offset_ms()
        if offset is not None and self.drifts(offset):
            self._fold_all()
            self.progress = replace(self.progress, clock_offset=offset)

    def drifts(self, offset_ms: int) -> bool:
        """Whether the stored offset is no longer the measured one."""
        return abs(offset_ms - self.progress.clock_offset) > OFFSET_TOLERANCE_MS

    def to_store(self) -> bool:
        """Whether an acknowledgement waits to be stored, or the log to be trimmed."""
        run, published, published_seq = self._acknowledged
        progress = self.progress
        behind = run == progress.run and (published, published_seq) > (progress.published, progress.published_seq)
        first = all_rows(self.db, f"SELECT min(seq), max(seq) FROM {LOG}")[0]
        upto = min(progress.published_seq, progress.folded_seq)
        return behind or (first[0] is not None and first[0] <= upto and first[0] < first[1])

    def _correct_jump(self, upto: int) -> None:
        """Log rows stamped by a clock that has jumped ahead are written now, as far as anybody can tell.

        Their stored time is corrected, not the offset: rows before them may be published with the clocks that it gave.
        The publisher sends no row that runs ahead, so these are not.
        """
        now_ms = self.timekeeper.now_ms()
        if now_ms is not None:
            now = now_ms - self.progress.clock_offset
            ahead = f"UPDATE {LOG} SET ts = ? WHERE seq > ? AND seq <= ? AND ts > ?"
            self.db.execute(ahead, (now, self.progress.folded_seq, upto, now + AHEAD_MS_MAX))

    def log_deletes(self, gone: list[tuple[int, Key]]) -> None:
        """Rows that versions call alive and the table has not: a delete that no trigger saw, logged as one of now."""
        for number, key in gone:
            rows = self.tables.get(number)
            if rows is None or rows.table.keyless or rows.present(key) or rows.hidden(key) is not None:
                continue
            columns, marks = key_columns(len(key)), ", ".join("?" * len(key))
            top = number * KIND_FACTOR + Kind.DELETE
            sql = f"INSERT INTO {LOG}(top, ts, mask, {columns}) VALUES ({top}, {NOW_MS}, -1, {marks})"
            execute(self.db, sql, key)
            self.counters.repaired_rows += 1

    def refill(self, lo: Vector) -> None:
        """The stream lost something: publish again every row with a version above ``lo``, dead runs included.

        ``lo`` is what every member has. No outbox archive is needed: the side tables say which rows to say again.
        """
        self.fold_all()
        own, progress = self.progress.run, self.progress
        floors = {run.id: lo.get(run.run, 0) for run in self.runs.by_run.values()}
        floors[0] = 0
        self.db.execute(
            f"CREATE TABLE IF NOT EXISTS temp.{PREFIX}floor(id INTEGER PRIMARY KEY, clock INTEGER NOT NULL)"
        )
        self.db.execute(f"DELETE FROM temp.{PREFIX}floor")
        self.db.executemany(f"INSERT INTO temp.{PREFIX}floor VALUES (?, ?)", floors.items())
        for rows in self.tables.values():
            self._say_again_above_floor(rows)
        covers = dict(progress.covers)
        # Rows that wait here for a schema are not said, so nobody may take this for everything of their runs.
        complete = scalar(self.db, f"SELECT count(*) FROM {PREFIX}paused") == 0
        for run, clock in self.vector_of_others().items():
            if complete and clock > lo.get(run, 0):
                covers[run] = (min(lo.get(run, 0), covers.get(run, (clock, 0))[0]), clock)
        self.progress = replace(self.progress, published=min(progress.published, lo.get(own, 0)), covers=covers)
        self._acknowledged = (0, 0, 0)
        self.fold_all()
        self.counters.refills += 1

    def _say_again_above_floor(self, rows: Rows) -> None:
        width = len(rows.table.key)
        columns, top = key_columns(width), rows.captured.number * KIND_FACTOR + Kind.SAY_AGAIN
        above = (
            f"s.l > (SELECT clock FROM temp.{PREFIX}floor WHERE id = s.lr) OR "
            f"s.u > (SELECT clock FROM temp.{PREFIX}floor WHERE id = s.ur) OR s.x IS NOT NULL"
        )
        self.db.execute(
            f"INSERT INTO {LOG}(top, ts, mask, {columns}) SELECT {top}, {NOW_MS}, 0, {key_columns(width, 's.')} "
            f"FROM {rows.side} AS s WHERE s.k1 IS NOT NULL AND ({above})"
        )

    def close(self) -> None:
        """Close the writer's connection."""
        self.db.close()


def runs_ahead(ts: object, offset_ms: int, now_ms: int | None) -> bool:
    """Whether a log row's wall time, corrected, lies too far ahead of the server's time (None: not measured)."""
    return isinstance(ts, int) and now_ms is not None and ts + offset_ms > now_ms + AHEAD_MS_MAX


def extended(stretches: tuple[Stretch, ...], new: Stretch) -> tuple[Stretch, ...]:
    """The stretches with one more; writes with the same context are one stretch."""
    if stretches and stretches[-1].seen == new.seen:
        return (*stretches[:-1], new)
    return (*stretches, new)


def stamp(
    rows: list[Row], progress: Progress, widths: dict[int, int], clock: int | None = None
) -> tuple[dict[int, dict[Key, list[Mention]]], int]:
    """Clocks for log rows (seq, top, ts, mask, k1 …): table number -> key -> mentions, and the last clock. Pure.

    ``clock``: that of the log row before them; None if that is the last one folded.
    """
    offset = progress.clock_offset
    clock = progress.clock if clock is None else clock
    mentions: dict[int, dict[Key, list[Mention]]] = {}
    for row in rows:
        _, top, ts, mask = row[:4]
        clock = advance(clock, ts + offset)
        number, kind = divmod(top, KIND_FACTOR)
        key = row[4 : 4 + widths.get(number, 1)]
        mentions.setdefault(number, {}).setdefault(key, []).append(Mention(kind, mask, clock))
    return mentions, clock
