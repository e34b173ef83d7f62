"""Reads everything the log says after a position into one group. A reader: it never takes the write lock.

A group is all of it, to the end of the log, read in one snapshot: values are read late, so a cut in the middle would
show states that never were. Versions that are not stored yet are computed as the fold will compute them.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from replicated_sqlite_agent.capture.install import Catalog
from replicated_sqlite_agent.capture.triggers import KIND_FACTOR, LOG
from replicated_sqlite_agent.changes import Key, Kind, Mention, RowState, Stretch, Vector
from replicated_sqlite_agent.database.connection import all_rows, connect, read_transaction, scalar
from replicated_sqlite_agent.database.exact import Row, select
from replicated_sqlite_agent.database.own_tables import Progress, Runs, decode_progress, key_columns, progress_row
from replicated_sqlite_agent.merge.fold import fold_key
from replicated_sqlite_agent.outbound.images import Images, Overlaid, Stored
from replicated_sqlite_agent.replica import bulk
from replicated_sqlite_agent.replica.keyless import name_of
from replicated_sqlite_agent.replica.local import one_form
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.replica.state import FileReplacedError, extended, runs_ahead, stamp
from replicated_sqlite_agent.spool import spool
from replicated_sqlite_agent.wire import IMAGE_ROWS_MIN, Block, Header, encode_frame, row_to_wire

UNFOLDED_ROWS_MAX = 256
"""More new log rows than this are folded first, unless SQL can compute their versions: row by row is slow."""

OVERLAY_ROWS_MAX = 8_192
"""More log rows than this are folded first, sent or not: their versions are kept or computed in memory."""

SLICE_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Sent:
    """Up to where this run has handed groups to the stream: clock and log row."""

    clock: int
    seq: int


class NotReadyError(Exception):
    """The writer has to act first: fold, correct the clock's offset, or install capture for a new schema."""


@dataclass(slots=True)
class Group:
    """One encoded group. ``body`` is at its beginning and ``size`` bytes long."""

    run: int
    id: bytes
    lo: int
    hi: int
    seq: int
    rows: int
    size: int
    body: BinaryIO
    covers: dict[int, tuple[int, int]]
    unrowed: list[tuple[int, Key]] = field(default_factory=list)
    """(table number, key) of rows that the versions call alive and the table has not: to be logged as deletes."""

    def slices(self, size: int) -> Iterator[bytes]:
        """The body in pieces of at most this many bytes; one empty piece for an empty body."""
        self.body.seek(0)
        piece = self.body.read(size)
        yield piece
        while len(piece) == size and (piece := self.body.read(size)):
            yield piece


@dataclass(slots=True)
class _Unfolded:
    """The log rows after the fold with their clocks. Read once: a group costs its own rows, not all since the fold."""

    base: Progress
    """Where the fold stood."""
    upto: int
    clock: int
    mentions: dict[int, dict[Key, list[Mention]]] = field(default_factory=dict)

    def follows(self, progress: Progress, sent: Sent) -> bool:
        """Whether it is still true and has nothing that is to be sent (again)."""
        old = self.base
        return self.upto <= sent.seq and (old.run, old.folded_seq, old.clock, old.clock_offset) == (
            progress.run,
            progress.folded_seq,
            progress.clock,
            progress.clock_offset,
        )

    def add(self, rows: list[Row], widths: dict[int, int], sent: Sent) -> dict[int, dict[Key, list[Mention]]]:
        """Take further log rows; returns all mentions of the keys that those after ``sent`` name."""
        news, self.clock = stamp(rows, self.base, widths, self.clock)
        for number, by_key in news.items():
            known = self.mentions.setdefault(number, {})
            for key, told in by_key.items():
                known.setdefault(key, []).extend(told)
        self.upto = cast(int, rows[-1][0]) if rows else self.upto
        fresh: dict[int, dict[Key, list[Mention]]] = {}
        for row in rows:
            if cast(int, row[0]) > sent.seq:
                number = cast(int, row[1]) // KIND_FACTOR
                key = row[4 : 4 + widths.get(number, 1)]
                fresh.setdefault(number, {})[key] = list(self.mentions[number][key])
        return fresh


@dataclass(frozen=True, slots=True)
class _Look:
    """What a snapshot showed."""

    version: int
    """SQLite's data_version: another one after each commit of anybody else."""
    newest: int
    covers: dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _News:
    """What is not folded yet: by table number either the mentions of keys, or where the versions are computed."""

    clock: int
    """Of the last log row."""
    mentions: dict[int, dict[Key, list[Mention]]]
    overlays: dict[int, Overlaid]


class LogReader:
    """The outbound thread's view of the file."""

    def __init__(self, path: Path, spool: Path) -> None:
        self.db = connect(path)
        self._spool = spool
        self._catalog = Catalog(-1, {}, {})
        self._tables: dict[int, Rows] = {}
        self._widths: dict[int, int] = {}
        self._unfolded: _Unfolded | None = None
        self._looked: _Look | None = None
        self._decoded_progress: tuple[Row, Progress] | None = None
        self._decoded_runs: tuple[list[Row], Runs] | None = None
        self._images = Images(self.db)

    def close(self) -> None:
        """Close the reader's connection."""
        self.db.close()

    def newest(self) -> int:
        """The number of the newest log row."""
        return int(scalar(self.db, f"SELECT max(seq) FROM {LOG}") or 0)

    def read(
        self, run: int, sent: Sent, covers_sent: dict[int, tuple[int, int]], catalog: Catalog, now_ms: int | None = None
    ) -> Group | None:
        """Everything after ``sent`` as one group, None if there is nothing to say.

        ``now_ms``: the stream server's time; no clock that runs more than a second ahead of it gets out.
        Raises NotReadyError if the writer must act first, FileReplacedError if the file is of another run.
        """
        if self._nothing_since(sent, covers_sent):
            return None
        with read_transaction(self.db):
            if scalar(self.db, "PRAGMA schema_version") != catalog.schema_version:
                raise NotReadyError
            progress = self._progress()
            if progress.run != run:
                raise FileReplacedError(str(self.db.filename))
            covers = {} if progress.covers == covers_sent else progress.covers
            newest = self.newest()
            self._looked = _Look(scalar(self.db, "PRAGMA data_version"), newest, progress.covers)
            if newest <= sent.seq and not covers:
                return None
            if newest - progress.folded_seq > OVERLAY_ROWS_MAX:
                raise NotReadyError
            runs = self._known_runs()
            self._follow(catalog, runs)
            return self._group(progress, runs, sent, newest, covers, now_ms)

    def _nothing_since(self, sent: Sent, covers_sent: dict[int, tuple[int, int]]) -> bool:
        """Whether nobody has committed since the last look, and all of that is sent."""
        last = self._looked
        if last is None or sent.seq < last.newest or (last.covers and last.covers != covers_sent):
            return False
        return bool(scalar(self.db, "PRAGMA data_version") == last.version)

    def _progress(self) -> Progress:
        row = progress_row(self.db)
        if self._decoded_progress is None or self._decoded_progress[0] != row:
            self._decoded_progress = (row, decode_progress(row))
        return self._decoded_progress[1]

    def _known_runs(self) -> Runs:
        rows = Runs.rows(self.db)
        if self._decoded_runs is None or self._decoded_runs[0] != rows:
            self._decoded_runs = (rows, Runs.decode(rows))
        return self._decoded_runs[1]

    def _follow(self, catalog: Catalog, runs: Runs) -> None:
        if catalog is not self._catalog:
            self._catalog, self._unfolded = catalog, None
            self._tables = {number: Rows(self.db, captured, runs) for number, captured in catalog.by_number.items()}
            self._widths = {number: len(c.table.key) for number, c in catalog.by_number.items()}
        for rows in self._tables.values():
            rows.runs = runs

    def _group(
        self,
        progress: Progress,
        runs: Runs,
        sent: Sent,
        newest: int,
        covers: dict[int, tuple[int, int]],
        now_ms: int | None,
    ) -> Group | None:
        unfolded = self._computed_by_sql(progress, sent, newest, now_ms)
        if unfolded is None:
            unfolded = self._told_one_by_one(progress, sent, newest, now_ms)
        clock = unfolded.clock
        seen = runs.vector()
        seen.pop(progress.run, None)
        stretches = tuple(s for s in progress.stretches if s.clock > sent.clock)
        if clock > progress.clock or not stretches:
            stretches = extended(stretches, Stretch(clock, seen))
        hi = max(clock, sent.clock)
        body = spool(self._spool)
        header = Header(
            progress.node,
            sent.clock,
            hi,
            newest,
            [(s.clock, s.seen) for s in stretches],
            covers,
            seen | {progress.run: hi},
        )
        body.write(encode_frame(header))
        group = Group(progress.run, secrets.token_bytes(8), sent.clock, hi, newest, 0, 0, body, covers)
        for block in self._blocks(progress, sent, newest, unfolded, group):
            body.write(encode_frame(block))
            group.rows += block.count
        group.size = body.tell()
        if not group.rows and not covers and hi <= sent.clock:
            body.close()
            return None
        return group

    def _told_one_by_one(self, progress: Progress, sent: Sent, newest: int, now_ms: int | None) -> _News:
        """What the log says that is not folded yet, key by key."""
        if newest - max(progress.folded_seq, sent.seq) > UNFOLDED_ROWS_MAX:
            raise NotReadyError
        known = self._unfolded
        if known is None or not known.follows(progress, sent):
            known = self._unfolded = _Unfolded(progress, progress.folded_seq, progress.clock)
        log = self._log_rows(known.upto)
        if runs_ahead(max((row[2] for row in log), default=None), progress.clock_offset, now_ms):
            raise NotReadyError
        mentions = known.add(log, self._widths, sent)
        if any(self._tables[n].table.keyless for n in mentions if n in self._tables):
            raise NotReadyError
        return _News(known.clock, mentions, {})

    def _computed_by_sql(self, progress: Progress, sent: Sent, newest: int, now_ms: int | None) -> _News | None:
        """The versions of many log rows that are not folded yet; None if they are few, or SQL cannot compute them."""
        if newest - max(progress.folded_seq, sent.seq) <= IMAGE_ROWS_MIN:
            return None
        low = progress.folded_seq
        steps, said = bulk.survey(self.db, low, newest, progress)
        known = {number: kinds for number, kinds in said.items() if number in self._tables}
        if not steps or not all(bulk.sequential(self._tables[n], kinds, low, newest) for n, kinds in known.items()):
            return None
        latest = scalar(self.db, f"SELECT max(ts) FROM {LOG} WHERE seq > ? AND seq <= ?", (low, newest))
        if runs_ahead(latest, progress.clock_offset, now_ms):
            raise NotReadyError
        overlays = {n: self._images.overlay(self._tables[n], progress, newest, steps) for n in known}
        return _News(steps[-1].last + steps[-1].ahead, {}, overlays)

    def _log_rows(self, after: int, upto: int | None = None) -> list[Row]:
        columns = ["seq", "top", "ts", "mask", *(f"k{i + 1}" for i in range(max(self._widths.values(), default=1)))]
        bound = "" if upto is None else f" AND seq <= {upto}"
        return select(self.db, columns, f"FROM {LOG} WHERE seq > ?{bound} ORDER BY seq", (after,))

    def _blocks(
        self,
        progress: Progress,
        sent: Sent,
        newest: int,
        news: _News,
        group: Group,
    ) -> Iterator[Block]:
        """The rows of the group: stored versions first, then those that are only in the log yet."""
        mentions = news.mentions
        stored_upto = min(newest, progress.folded_seq)
        if stored_upto - sent.seq > IMAGE_ROWS_MIN:
            for told in (told for by_key in mentions.values() for told in by_key.values()):
                if all(m.kind == Kind.TOUCHED for m in told):
                    # Perhaps it is to be said again in the stored part of the log: once too often is harmless.
                    told.insert(0, Mention(Kind.SAY_AGAIN, 0, 0))
            for low in range(sent.seq, stored_upto, SLICE_ROWS):
                yield from self._stored_blocks(progress, sent, low, min(low + SLICE_ROWS, stored_upto), news, group)
        elif news.overlays and stored_upto > sent.seq:
            yield from self._stored_blocks(progress, sent, sent.seq, stored_upto, news, group)
        else:
            for row in self._log_rows(sent.seq, stored_upto) if stored_upto > sent.seq else []:
                number, kind = divmod(cast(int, row[1]), KIND_FACTOR)
                key = row[4 : 4 + self._widths.get(number, 1)]
                told = mentions.setdefault(number, {}).setdefault(key, [])
                if kind == Kind.SAY_AGAIN:
                    told.insert(0, Mention(Kind.SAY_AGAIN, 0, 0))
        for number, by_key in mentions.items():
            if number in self._tables:
                rows = self._tables[number]
                yield from self._computed_block(rows, one_form(rows, by_key), progress, sent, group)
        for overlaid in news.overlays.values():
            own = overlaid.rows.runs.id_of(self.db, progress.run)
            yield from self._images.blocks(overlaid, own, sent.clock)
        for rows in self._tables.values():
            if rows.table.keyless:
                yield from self._ended_rows(rows, progress, sent, group.covers)

    # ---- row by row ----------------------------------------------------------------------------------------------

    def _computed_block(
        self, rows: Rows, by_key: dict[Key, list[Mention]], progress: Progress, sent: Sent, group: Group
    ) -> Iterator[Block]:
        """Rows whose versions come from the log as well as from the side table, as msgpack."""
        said: list[tuple[Key, RowState]] = []
        for key, told in by_key.items():
            if None in key:
                continue
            named = name_of(rows, key) if rows.table.keyless else key
            state = self._state(rows, named, told, progress.run) if named is not None else None
            if state is None:
                continue
            again = any(m.kind == Kind.SAY_AGAIN for m in told)
            if not again and not any(v.run == progress.run and v.clock > sent.clock for v in state.versions()):
                continue
            if state.alive and not state.values and rows.table.columns:
                group.unrowed.append((rows.captured.number, key))
                continue
            named = cast(Key, named)
            said.append((rows.exact_key(named) if state.alive else named, state))
        for start in range(0, len(said), SLICE_ROWS):
            yield from _msgpack_blocks(rows, said[start : start + SLICE_ROWS])

    def _state(self, rows: Rows, key: Key, told: list[Mention], run: int) -> RowState | None:
        """Versions as the fold will store them, values as they are now; None if the key was never more than touched."""
        changes = [m for m in told if m.clock]
        stored = rows.entry(key)
        entry = stored.state if stored is not None else None
        if not changes:
            here, _ = rows.state(key)
            return entry if here is None else here  # called alive, but without values: the caller reports it
        values = rows.visible(key)
        kept = rows.hidden(key) if values is None or rows.table.unique else None
        after = fold_key(
            changes,
            entry,
            present=values is not None,
            hidden=bool(rows.table.unique) and kept is not None,
            run=run,
            columns=rows.table.columns,
            by_column=rows.captured.by_column,
        )
        if after is None:
            return rows.state(key)[0]
        if not after.alive:
            return after
        shown = values if values is not None else kept if entry is None or entry.alive else None
        return RowState(after.life, alive=True, update=after.update, columns=after.columns, values=shown or {})

    # ---- by the thousand -------------------------------------------------------------------------------------------

    def _stored_blocks(
        self, progress: Progress, sent: Sent, low: int, high: int, news: _News, group: Group
    ) -> Iterator[Block]:
        """One slice of the log, everything in it folded: an image for each table with many rows in it."""
        for number, kinds in self._kinds(low, high).items():
            rows = self._tables[number]
            few = kinds.total() < IMAGE_ROWS_MIN
            later, overlay = news.mentions.get(number, {}), news.overlays.get(number)
            if few or (rows.table.unique and rows.any_hidden()) or not rows.table.key_is_exact:
                told = self._mentioned(rows, low, high, overlay.overlay if overlay else None)
                known = {rows.table.same_key(key) for key in later}
                said = {key: v for key, v in told.items() if rows.table.same_key(key) not in known}
                yield from self._computed_block(rows, one_form(rows, said), progress, sent, group)
            else:
                elsewhere = overlay.overlay if overlay else self._images.later(rows, later)
                stored = Stored(rows, low, high, frozenset(kinds), elsewhere)
                yield from self._images.blocks(stored, rows.runs.id_of(self.db, progress.run), sent.clock)

    def _kinds(self, low: int, high: int) -> dict[int, Counter[Kind]]:
        """Table number -> how often a slice of the log says what; only of tables that are there."""
        found: dict[int, Counter[Kind]] = {}
        query = f"SELECT top, count(*) FROM {LOG} WHERE seq > ? AND seq <= ? GROUP BY top ORDER BY top"
        for top, count in all_rows(self.db, query, (low, high)):
            number, kind = divmod(top, KIND_FACTOR)
            if number in self._tables:
                found.setdefault(number, Counter())[Kind(kind)] = count
        return found

    def _mentioned(self, rows: Rows, low: int, high: int, later: str | None) -> dict[Key, list[Mention]]:
        """The keys of one table that a slice of the log names and ``later`` does not, as mentions without a clock."""
        width, top = len(rows.table.key), rows.captured.number * KIND_FACTOR
        columns = [*(f"k{i + 1}" for i in range(width)), f"max(top = {top + Kind.SAY_AGAIN})"]
        same = " AND ".join(f"o.k{i + 1} = m.k{i + 1}" for i in range(width))
        elsewhere = f"AND NOT EXISTS (SELECT 1 FROM {later} AS o WHERE {same})" if later else ""
        rest = (
            f"FROM {LOG} AS m WHERE seq > {low} AND seq <= {high} AND top BETWEEN {top} AND {top + KIND_FACTOR - 1} "
            f"{elsewhere} GROUP BY {key_columns(width)}"
        )
        found = select(self.db, columns, rest)
        return {row[:width]: [Mention(Kind.SAY_AGAIN, 0, 0)] if row[width] else [] for row in found}

    def _ended_rows(
        self, rows: Rows, progress: Progress, sent: Sent, covers: dict[int, tuple[int, int]]
    ) -> Iterator[Block]:
        """Deleted rows of a table without a key: the rowid is gone, so they are found by the version of the delete."""
        floors: Vector = {run: lo for run, (lo, _) in covers.items()} | {progress.run: sent.clock}
        said: list[tuple[Key, RowState]] = []
        for run, floor in floors.items():
            known = rows.runs.by_run.get(run)
            if known is None:
                continue
            query = f"SELECT run, number, l, lr, dead, u, ur, x FROM {rows.side} WHERE dead AND lr = ? AND l > ?"
            for row in all_rows(self.db, query, (known.id, floor)):
                said.append((row[:2], rows.decode_entry(row[2:])))
        yield from _msgpack_blocks(rows, said)


def _msgpack_blocks(rows: Rows, said: list[tuple[Key, RowState]]) -> Iterator[Block]:
    """Rows as msgpack, a block for each 64 rows or 1 MiB: the memory of both sides stays small."""
    table = rows.table
    key = ["run", "number"] if table.keyless else list(table.key_names)
    for start in range(0, len(said), IMAGE_ROWS_MIN):
        part = said[start : start + IMAGE_ROWS_MIN]
        numbers: dict[int, int] = {}
        for _, state in part:
            for version in state.versions():
                numbers.setdefault(version.run, len(numbers))
        wire = [row_to_wire(k, state, table.columns, numbers) for k, state in part]
        by_number = {number: run for run, number in numbers.items()}
        yield Block(table.name, table.digest, key, list(table.columns), by_number, len(wire), wire)
