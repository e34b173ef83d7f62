"""Reads everything the log says after a position into one group. A reader: it never takes the write lock.

A group is all of it, to the end of the log, read in one snapshot: values are read late, so a cut in the middle would
show states that never were. Versions that are not stored yet are computed as the fold will compute them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

from replicated_sqlite_agent.capture.install import Catalog
from replicated_sqlite_agent.capture.triggers import KIND_FACTOR, LOG
from replicated_sqlite_agent.changes import Key, Kind, Mention, RowState, Stretch, Vector
from replicated_sqlite_agent.database.connection import all_rows, connect, read_transaction, scalar
from replicated_sqlite_agent.database.exact import Row, execute, select
from replicated_sqlite_agent.database.identifiers import quote
from replicated_sqlite_agent.database.own_tables import Progress, Runs, key_columns, read_progress
from replicated_sqlite_agent.merge.fold import fold_key
from replicated_sqlite_agent.replica.keyless import name_of
from replicated_sqlite_agent.replica.local import one_form
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.replica.state import FileReplacedError, extended, runs_ahead, stamp
from replicated_sqlite_agent.spool import spool
from replicated_sqlite_agent.wire import IMAGE_ROWS_MIN, Block, Header, encode_frame, image_schema, row_to_wire

UNFOLDED_ROWS_MAX = 256
"""More new log rows than this are folded first: stored versions are joined by SQL, computed ones row by row in Python."""

KNOWN_ROWS_MAX = 4_096
"""More log rows than this are folded, sent or not: until then they are kept in memory with their clocks."""

SLICE_ROWS = 5_000
IMAGE_BYTES_MAX = 4 << 20
"""An image holds this much at most, one row alone may be larger: bounds the memory of sender and receiver."""


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
        news, self.clock = stamp(rows, replace(self.base, clock=self.clock), widths)
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


class LogReader:
    """The outbound thread's view of the file."""

    def __init__(self, path: Path, spool: Path) -> None:
        self.db = connect(path)
        self._spool = spool
        self._catalog = Catalog(-1, {}, {})
        self._tables: dict[int, Rows] = {}
        self._widths: dict[int, int] = {}
        self._unfolded: _Unfolded | None = None
        self.db.execute("ATTACH ':memory:' AS out")

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
        with read_transaction(self.db):
            if int(self.db.pragma("schema_version")) != catalog.schema_version:
                raise NotReadyError
            progress = read_progress(self.db)
            if progress.run != run:
                raise FileReplacedError(str(self.db.filename))
            covers = {} if progress.covers == covers_sent else progress.covers
            newest = self.newest()
            if newest <= sent.seq and not covers:
                return None
            unfolded, new = newest - progress.folded_seq, newest - max(progress.folded_seq, sent.seq)
            if new > UNFOLDED_ROWS_MAX or unfolded > KNOWN_ROWS_MAX:
                raise NotReadyError
            runs = Runs.read(self.db)
            self._follow(catalog, runs)
            return self._group(progress, runs, sent, newest, covers, now_ms)

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
        known = self._unfolded
        if known is None or not known.follows(progress, sent):
            known = self._unfolded = _Unfolded(progress, progress.folded_seq, progress.clock)
        log = self._log_rows(known.upto)
        if runs_ahead(log[-1][2] if log else None, progress.clock_offset, now_ms):
            raise NotReadyError
        mentions, clock = known.add(log, self._widths, sent), known.clock
        if any(self._tables[n].table.keyless for n in mentions if n in self._tables):
            raise NotReadyError
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
        for block in self._blocks(progress, sent, newest, mentions, group):
            body.write(encode_frame(block))
            group.rows += block.count
        group.size = body.tell()
        if not group.rows and not covers and hi <= sent.clock:
            body.close()
            return None
        return group

    def _log_rows(self, after: int, upto: int | None = None) -> list[Row]:
        columns = ["seq", "top", "ts", "mask", *(f"k{i + 1}" for i in range(max(self._widths.values(), default=1)))]
        bound = "" if upto is None else f" AND seq <= {upto}"
        return select(self.db, columns, f"FROM {LOG} WHERE seq > ?{bound} ORDER BY seq", (after,))

    def _blocks(
        self,
        progress: Progress,
        sent: Sent,
        newest: int,
        mentions: dict[int, dict[Key, list[Mention]]],
        group: Group,
    ) -> Iterator[Block]:
        """The rows of the group: stored versions first, then those that are only in the log yet."""
        stored_upto = min(newest, progress.folded_seq)
        if stored_upto - sent.seq > IMAGE_ROWS_MIN:
            for told in (told for by_key in mentions.values() for told in by_key.values()):
                if all(m.kind == Kind.TOUCHED for m in told):
                    # Perhaps it is among those to be said again in the stored part of the log: once too often is harmless.
                    told.insert(0, Mention(Kind.SAY_AGAIN, 0, 0))
            for low in range(sent.seq, stored_upto, SLICE_ROWS):
                yield from self._stored_blocks(progress, sent, low, min(low + SLICE_ROWS, stored_upto), mentions, group)
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
        here, _ = rows.state(key)
        changes = [m for m in told if m.clock]
        if not changes:
            if here is None and (stored := rows.entry(key)) is not None:
                return stored.state  # called alive, but without values: the caller reports it
            return here
        stored = rows.entry(key)
        visible = rows.present(key)
        hidden = bool(rows.table.unique) and rows.hidden(key) is not None
        after = fold_key(
            changes,
            stored.state if stored is not None else None,
            present=visible,
            hidden=hidden,
            run=run,
            columns=rows.table.columns,
            by_column=rows.captured.by_column,
        )
        if after is None or not after.alive:
            return here if after is None else after
        values = here.values if here is not None and here.alive else (rows.visible(key) or {})
        if stored is not None and not stored.state.alive:
            values = rows.visible(key) or {}
        return RowState(after.life, alive=True, update=after.update, columns=after.columns, values=values)

    # ---- by the thousand -------------------------------------------------------------------------------------------

    def _stored_blocks(
        self,
        progress: Progress,
        sent: Sent,
        low: int,
        high: int,
        mentions: dict[int, dict[Key, list[Mention]]],
        group: Group,
    ) -> Iterator[Block]:
        """One slice of the log, everything in it folded: an SQLite image for each table, made by one statement."""
        bounds = f"seq > {low} AND seq <= {high}"
        tops = f"SELECT top / {KIND_FACTOR}, count(*) FROM {LOG} WHERE {bounds} GROUP BY 1 ORDER BY 1"
        for number, count in all_rows(self.db, tops):
            rows = self._tables.get(number)
            if rows is None:
                continue
            later = mentions.get(number, {})
            if count < IMAGE_ROWS_MIN or (rows.table.unique and rows.any_hidden()) or not rows.table.key_is_exact:
                told = self._mentioned(rows, low, high)
                known = {rows.table.same_key(key) for key in later}
                said = {key: v for key, v in told.items() if rows.table.same_key(key) not in known}
                yield from self._computed_block(rows, one_form(rows, said), progress, sent, group)
            else:
                yield from self._images(rows, progress, sent, low, high, later)

    def _mentioned(self, rows: Rows, low: int, high: int) -> dict[Key, list[Mention]]:
        """The keys of one table that a slice of the log names, as mentions without a clock."""
        width, top = len(rows.table.key), rows.captured.number * KIND_FACTOR
        columns = [*(f"k{i + 1}" for i in range(width)), f"max(top = {top + Kind.SAY_AGAIN})"]
        rest = (
            f"FROM {LOG} WHERE seq > {low} AND seq <= {high} AND top BETWEEN {top} AND {top + KIND_FACTOR - 1} "
            f"GROUP BY {key_columns(width)}"
        )
        found = select(self.db, columns, rest)
        return {row[:width]: [Mention(Kind.SAY_AGAIN, 0, 0)] if row[width] else [] for row in found}

    def _images(
        self, rows: Rows, progress: Progress, sent: Sent, low: int, high: int, later: dict[Key, list[Mention]]
    ) -> Iterator[Block]:
        """The images of one table for a slice of the log; halved until an image fits its bound."""
        if high - low > 1 and self._bytes(rows, low, high) > IMAGE_BYTES_MAX:
            middle = (low + high) // 2
            yield from self._images(rows, progress, sent, low, middle, later)
            yield from self._images(rows, progress, sent, middle, high, later)
            return
        table = rows.table
        self._fill_image(rows, sent, low, high, later, rows.runs.id_of(self.db, progress.run))
        count = int(scalar(self.db, "SELECT count(*) FROM out.r") or 0)
        if count:
            image = self.db.serialize("out")
            used = all_rows(self.db, "SELECT lr FROM out.r UNION SELECT ur FROM out.r WHERE ur IS NOT NULL")
            numbers = {row[0]: rows.runs.by_id[row[0]].run for row in used}
            key = ["run", "number"] if table.keyless else list(table.key_names)
            yield Block(table.name, table.digest, key, list(table.columns), numbers, count, None, image)

    def _bytes(self, rows: Rows, low: int, high: int) -> int:
        """The size of the rows that a slice of the log names; reads only the headers of records."""
        table = rows.table
        base = " AND ".join(f"b.{quote(k.name)} = m.k{i + 1}" for i, k in enumerate(table.key))
        size = " + ".join(f"coalesce(octet_length(b.{quote(c)}), 0)" for c in table.columns) or "0"
        keys, top = key_columns(len(table.key)), rows.captured.number * KIND_FACTOR
        query = (
            f"SELECT sum({size}) FROM (SELECT DISTINCT {keys} FROM {LOG} WHERE seq > {low} AND seq <= {high} "
            f"AND top BETWEEN {top} AND {top + KIND_FACTOR - 1}) AS m JOIN {quote(table.name)} AS b ON {base}"
        )
        return int(scalar(self.db, query) or 0)

    def _fill_image(
        self, rows: Rows, sent: Sent, low: int, high: int, later: dict[Key, list[Mention]], own: int
    ) -> None:
        table = rows.table
        width, top = len(table.key), rows.captured.number * KIND_FACTOR
        names = ("s.run", "s.number") if table.keyless else tuple(f"m.k{i + 1}" for i in range(width))
        values = [f"b.{quote(c)}" for c in table.columns]
        side = " AND ".join(f"s.k{i + 1} = m.k{i + 1}" for i in range(width))
        base = " AND ".join(f"b.{quote(k.name)} = m.k{i + 1}" for i, k in enumerate(table.key))
        shown = f"b.{quote(table.key[0].name)} IS NOT NULL"
        self._new_image(len(names), len(values))
        if later:
            self.db.execute(f"CREATE TABLE out.later({key_columns(width)}, PRIMARY KEY ({key_columns(width)}))")
            marks = ", ".join("?" * width)
            for key in later:
                execute(self.db, f"INSERT OR IGNORE INTO out.later VALUES ({marks})", key)
        except_later = " AND ".join(f"x.k{i + 1} = m.k{i + 1}" for i in range(width))
        exclude = f"AND NOT EXISTS (SELECT 1 FROM out.later AS x WHERE {except_later})" if later else ""
        self.db.execute(
            "INSERT INTO out.r SELECT "
            f"{', '.join(names)}, coalesce(s.l, 0), coalesce(s.lr, 0), coalesce(s.dead, 0), s.u, s.ur, s.x"
            f"{''.join(', ' + v for v in values)} "
            f"FROM (SELECT {key_columns(width)}, max(top = {top + Kind.SAY_AGAIN}) AS again FROM {LOG} "
            f"WHERE seq > {low} AND seq <= {high} AND top BETWEEN {top} AND {top + KIND_FACTOR - 1} GROUP BY {key_columns(width)}) AS m "
            f"LEFT JOIN {rows.side} AS s ON {side} LEFT JOIN {quote(table.name)} AS b ON {base} "
            f"WHERE (s.dead OR {shown}) AND (m.again OR s.x IS NOT NULL OR (s.lr = {own} AND s.l > {sent.clock}) "
            f"OR (s.ur = {own} AND s.u > {sent.clock})) {exclude}"
        )
        if later:
            self.db.execute("DROP TABLE out.later")

    def _new_image(self, keys: int, columns: int) -> None:
        """Empty the image database. Freed pages are zeroed (secure_delete), so they cost nothing once compressed."""
        self.db.execute("PRAGMA out.secure_delete = 1")
        self.db.execute("DROP TABLE IF EXISTS out.r")
        self.db.execute(image_schema(keys, columns).replace("CREATE TABLE r", "CREATE TABLE out.r"))

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
