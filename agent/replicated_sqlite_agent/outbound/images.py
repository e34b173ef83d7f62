"""Rows by the thousand: an SQLite image of each table, made by one statement.

Versions come from the side table, or, for log rows that are not folded yet, from an overlay: the entries of the side
table that they concern, folded in memory by the statement that the writer will use. So a burst of writes is published
without a wait for the write lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import apsw

from replicated_sqlite_agent.capture.triggers import KIND_FACTOR, LOG
from replicated_sqlite_agent.changes import Key, Kind
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.exact import execute
from replicated_sqlite_agent.database.identifiers import quote
from replicated_sqlite_agent.database.own_tables import Progress, key_columns
from replicated_sqlite_agent.replica import bulk
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.wire import Block, image_schema

IMAGE_BYTES_MAX = 4 << 20
"""An image holds this much at most, one row alone may be larger: bounds the memory of sender and receiver."""

_GROUPING = {Kind.UPDATE, Kind.DELETE, Kind.TOUCHED}
"""Log rows of these kinds often name one key many times. A key that is inserted twice may be in an image twice."""


class Source(Protocol):
    """Some rows of one table with their versions."""

    @property
    def rows(self) -> Rows:
        """The table."""

    @property
    def count(self) -> int:
        """How many rows at most."""

    @property
    def keys(self) -> str:
        """The expressions of a row's key."""

    def select(self, result: str, own_id: int, sent_clock: int) -> tuple[str, tuple[int, ...]]:
        """A query over the rows that this run wrote after ``sent_clock``: versions are ``s``, values ``b``."""

    def named(self, result: str) -> tuple[str, tuple[int, ...]]:
        """A query over the rows of the table, as ``b``, that may be among them."""

    def halves(self) -> tuple[Source, Source]:
        """The same in two."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The rows that the log names after ``low`` up to ``high``, everything there folded."""

    rows: Rows
    low: int
    high: int
    kinds: frozenset[Kind]
    """What the log says there."""
    later: str | None
    """A table of keys that are said elsewhere."""

    @property
    def count(self) -> int:
        """One for each log row."""
        return self.high - self.low

    @property
    def keys(self) -> str:
        """Of a table without a key the name is stored beside the versions."""
        return "s.run, s.number" if self.rows.table.keyless else key_columns(len(self.rows.table.key), "m.")

    def select(self, result: str, own_id: int, sent_clock: int) -> tuple[str, tuple[int, ...]]:
        """The log joined with versions and values."""
        again = f"m.top = {_top(self.rows) + Kind.SAY_AGAIN}" if self._is_log else "m.again"
        conditions = [
            f"(s.dead OR b.{quote(self.rows.table.key[0].name)} IS NOT NULL)",
            f"({again} OR s.x IS NOT NULL OR (s.lr = ?3 AND s.l > ?4) OR (s.ur = ?3 AND s.u > ?4))",
            *([_said_of(self.rows)] if self._is_log else []),
            *(
                [f"NOT EXISTS (SELECT 1 FROM {self.later} AS o WHERE {_same(self.rows, 'o', 'm')})"]
                if self.later
                else []
            ),
        ]
        query = (
            f"SELECT {result} FROM {self._mentions} AS m "
            f"LEFT JOIN {self.rows.side} AS s ON {_same(self.rows, 's', 'm')} "
            f"LEFT JOIN {quote(self.rows.table.name)} AS b ON {_lies(self.rows, 'm')} WHERE {' AND '.join(conditions)}"
        )
        return query, (self.low, self.high, own_id, sent_clock)

    def named(self, result: str) -> tuple[str, tuple[int, ...]]:
        """The log joined with values."""
        where = f" WHERE {_said_of(self.rows)}" if self._is_log else ""
        joined = f"{self._mentions} AS m CROSS JOIN {quote(self.rows.table.name)} AS b ON {_lies(self.rows, 'm')}"
        return f"SELECT {result} FROM {joined}{where}", (self.low, self.high)

    @property
    def _is_log(self) -> bool:
        return not self.kinds & _GROUPING

    @property
    def _mentions(self) -> str:
        """The log itself, or its keys once each where they may be named again and again."""
        if self._is_log:
            return LOG
        keys, again = key_columns(len(self.rows.table.key)), f"m.top = {_top(self.rows) + Kind.SAY_AGAIN}"
        return f"(SELECT {keys}, max({again}) AS again FROM {LOG} AS m WHERE {_said_of(self.rows)} GROUP BY {keys})"

    def halves(self) -> tuple[Stored, Stored]:
        """Cut between two log rows."""
        middle = (self.low + self.high) // 2
        first = Stored(self.rows, self.low, middle, self.kinds, self.later)
        return first, Stored(self.rows, middle, self.high, self.kinds, self.later)


@dataclass(frozen=True, slots=True)
class Overlaid:
    """Rows ``low + 1`` to ``high`` of an overlay in order of their keys."""

    rows: Rows
    overlay: str
    low: int
    high: int

    @property
    def count(self) -> int:
        """One for each entry."""
        return self.high - self.low

    @property
    def keys(self) -> str:
        """As in the side table."""
        return key_columns(len(self.rows.table.key), "s.")

    def select(self, result: str, own_id: int, sent_clock: int) -> tuple[str, tuple[int, ...]]:
        """The overlay joined with values."""
        query = (
            f"SELECT {result} FROM {self._entries} AS s "
            f"LEFT JOIN {quote(self.rows.table.name)} AS b ON {_lies(self.rows, 's')} "
            f"WHERE (s.dead OR b.{quote(self.rows.table.key[0].name)} IS NOT NULL) "
            "AND ((s.lr = ?3 AND s.l > ?4) OR (s.ur = ?3 AND s.u > ?4))"
        )
        return query, (self.count, self.low, own_id, sent_clock)

    def named(self, result: str) -> tuple[str, tuple[int, ...]]:
        """The overlay's keys joined with values."""
        joined = f"{self._entries} AS s CROSS JOIN {quote(self.rows.table.name)} AS b ON {_lies(self.rows, 's')}"
        return f"SELECT {result} FROM {joined}", (self.count, self.low)

    @property
    def _entries(self) -> str:
        keys = key_columns(len(self.rows.table.key))
        return f"(SELECT * FROM {self.overlay} ORDER BY {keys} LIMIT ?1 OFFSET ?2)"

    def halves(self) -> tuple[Overlaid, Overlaid]:
        """Cut between two keys."""
        middle = (self.low + self.high) // 2
        first = Overlaid(self.rows, self.overlay, self.low, middle)
        return first, Overlaid(self.rows, self.overlay, middle, self.high)


class Images:
    """Makes images on the reader's connection, within its read transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        db.execute("ATTACH ':memory:' AS out")
        db.execute("ATTACH ':memory:' AS overlay")
        # What is freed in an image is zeroed, so that it costs nothing once compressed.
        all_rows(db, "PRAGMA out.secure_delete = 1")

    def overlay(self, rows: Rows, progress: Progress, high: int, steps: list[bulk.Step]) -> Overlaid:
        """The entries of the side table that the log rows not folded yet concern, as the fold will make them."""
        name, keys = self._new_overlay(rows), key_columns(len(rows.table.key))
        self._db.execute(
            f"INSERT OR IGNORE INTO {name}({keys}, l, lr, dead, u, ur, x) "
            f"SELECT {key_columns(len(rows.table.key), 's.')}, s.l, s.lr, s.dead, s.u, s.ur, s.x "
            f"FROM {LOG} AS m CROSS JOIN {rows.side} AS s ON {_same(rows, 's', 'm')} WHERE {_said_of(rows)}",
            (progress.folded_seq, high),
        )
        bulk.fold(rows, name, steps, rows.runs.id_of(self._db, progress.run))
        return Overlaid(rows, name, 0, int(scalar(self._db, f"SELECT count(*) FROM {name}") or 0))

    def later(self, rows: Rows, keys: Iterable[Key]) -> str | None:
        """A table of these keys, None if there are none."""
        name, marks = None, ", ".join("?" * len(rows.table.key))
        for key in keys:
            name = name or self._new_overlay(rows)
            columns = key_columns(len(key))
            execute(self._db, f"INSERT OR IGNORE INTO {name}({columns}, l, lr, dead) VALUES ({marks}, 0, 0, 0)", key)
        return name

    def _new_overlay(self, rows: Rows) -> str:
        width = len(rows.table.key)
        name = f"overlay.v{rows.captured.number}"
        versions = "l INTEGER NOT NULL, lr INTEGER NOT NULL, dead INTEGER NOT NULL, u INTEGER, ur INTEGER, x BLOB"
        self._db.execute(f"DROP TABLE IF EXISTS {name}")
        if rows.table.rowid_alias:
            self._db.execute(f"CREATE TABLE {name}(k1 INTEGER PRIMARY KEY, {versions})")
        else:
            keys = ", ".join(f"k{i + 1}" for i in range(width))
            self._db.execute(f"CREATE TABLE {name}({keys}, {versions}, PRIMARY KEY ({keys})) WITHOUT ROWID")
        return name

    def blocks(self, source: Source, own_id: int, sent_clock: int) -> Iterator[Block]:
        """The rows that this run, ``own_id``, wrote after ``sent_clock``. Halved until an image fits its bound."""
        if source.count > 1 and self._bytes(source) > IMAGE_BYTES_MAX:
            for half in source.halves():
                yield from self.blocks(half, own_id, sent_clock)
            return
        table, by_id = source.rows.table, source.rows.runs.by_id
        count = self._fill(source, own_id, sent_clock)
        if count:
            image = self._db.serialize("out")
            used = {i for pair in all_rows(self._db, "SELECT DISTINCT lr, ur FROM out.r") for i in pair}
            numbers = {i: by_id[i].run for i in used if i is not None}
            key = ["run", "number"] if table.keyless else list(table.key_names)
            yield Block(table.name, table.digest, key, list(table.columns), numbers, count, None, image)

    def _bytes(self, source: Source) -> int:
        """The size of the values; reads only the headers of records."""
        columns = source.rows.table.columns
        size = " + ".join(f"coalesce(octet_length(b.{quote(c)}), 0)" for c in columns) or "0"
        return int(scalar(self._db, *source.named(f"sum({size})")) or 0)

    def _fill(self, source: Source, own_id: int, sent_clock: int) -> int:
        """Put the rows into ``out.r``; returns how many."""
        table = source.rows.table
        keys = 2 if table.keyless else len(table.key)
        self._db.execute("DROP TABLE IF EXISTS out.r")
        self._db.execute(image_schema(keys, len(table.columns)).replace("TABLE r", "TABLE out.r"))
        versions = "coalesce(s.l, 0), coalesce(s.lr, 0), coalesce(s.dead, 0), s.u, s.ur, s.x"
        values = "".join(f", b.{quote(c)}" for c in table.columns)
        query, parameters = source.select(f"{source.keys}, {versions}{values}", own_id, sent_clock)
        self._db.execute(f"INSERT INTO out.r {query}", parameters)
        return self._db.changes()


def _top(rows: Rows) -> int:
    return rows.captured.number * KIND_FACTOR


def _said_of(rows: Rows) -> str:
    """The log rows above ``?1`` up to ``?2`` of one table."""
    return f"m.seq > ?1 AND m.seq <= ?2 AND m.top BETWEEN {_top(rows)} AND {_top(rows) + KIND_FACTOR - 1}"


def _same(rows: Rows, one: str, other: str) -> str:
    return " AND ".join(f"{one}.k{i + 1} = {other}.k{i + 1}" for i in range(len(rows.table.key)))


def _lies(rows: Rows, keys: str) -> str:
    """Which row of the table it is."""
    return " AND ".join(f"b.{quote(k.name)} = {keys}.k{i + 1}" for i, k in enumerate(rows.table.key))
