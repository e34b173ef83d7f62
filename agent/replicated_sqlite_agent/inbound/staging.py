"""Applies the rows of an SQLite image by SQL: what is decided without a look at values never becomes a Python object.

The rows lie in the image itself or, if a group brings several, in a TEMP table, which may go to disk. Two statements
write the plain cases (`resolver.resolve` would take them without a loss); every contested row is handed back to be
resolved one by one. A test holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import cast

import apsw

from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.exact import Row, select
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote
from replicated_sqlite_agent.database.own_tables import Runs, key_columns
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.wire import Block, WireError, image_columns, image_schema

STAGED = f"temp.{PREFIX}staged"
_KNOWN = f"temp.{PREFIX}known"
_CLOCK_MAX = (1 << 63) - 1

_SLOTS, _SLOT_BYTES_MAX = 4, 2 << 20
"""So many images, each of this size at most, are used where they lie; others are copied. Bounds the memory."""


def prepare(db: apsw.Connection) -> None:
    """Attach what images are read from; once per connection, outside a transaction."""
    for name in ("image", *(f"image{slot}" for slot in range(_SLOTS))):
        db.execute(f"ATTACH ':memory:' AS {name}")
    db.execute(f"CREATE TABLE {_KNOWN}(id INTEGER PRIMARY KEY, clock INTEGER NOT NULL)")


class Stage:
    """The staged rows of one group and one table. ``number`` tells those apart that exist at the same time."""

    def __init__(self, db: apsw.Connection, number: int, keys: int, columns: int) -> None:
        self.db, self.keys, self.columns = db, keys, columns
        self.count = 0
        self.table = ""
        """Where the rows lie; from here they are taken out by their rowid."""
        self.source = ""
        """The rows as a subquery: ``n`` (the rowid), then the columns of an image, runs numbered as in this file."""
        self._copied = f"{STAGED}_{number}"
        self._slot = f"image{number}" if number < _SLOTS else None
        self._names = image_columns(keys, columns)

    def add(self, block: Block, runs: Runs) -> None:
        """Take an image's rows. Outside a transaction. Raises WireError."""
        assert block.image is not None
        try:
            if not self.table and self._slot is not None and len(block.image) <= _SLOT_BYTES_MAX:
                self._open(self._slot, block)
                self.table = f"{self._slot}.r"
                self.source = f"(SELECT rowid AS n, {self._columns(block, runs)} FROM {self.table})"
                self.count = int(scalar(self.db, f"SELECT count(*) FROM {self.table}"))
                return
            self._gather()
            self._open("image", block)
            self.db.execute(f"INSERT INTO {self.table} SELECT {self._columns(block, runs)} FROM image.r")
            self.count += self.db.changes()
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise WireError(f"an image for table {block.table} is damaged: {error}") from error

    def _open(self, name: str, block: Block) -> None:
        self.db.deserialize(name, cast(bytes, block.image))
        shapes = self.db.execute(f"SELECT type, name, sql FROM {name}.sqlite_schema").fetchall()
        if shapes != [("table", "r", image_schema(self.keys, self.columns))]:
            raise WireError(f"an image for table {block.table} holds something else than rows")

    def _gather(self) -> None:
        """From now on the rows are copied into one table."""
        if self.table == self._copied:
            return
        shape = f"({', '.join(self._names)})"
        self.db.execute(f"DROP TABLE IF EXISTS {self._copied}")
        self.db.execute(f"CREATE TABLE {self._copied}{shape}")
        if self.table:
            self.db.execute(f"INSERT INTO {self._copied} SELECT {', '.join(self._names)} FROM {self.source}")
        self.table, self.source = self._copied, f"(SELECT rowid AS n, * FROM {self._copied})"

    def _columns(self, block: Block, runs: Runs) -> str:
        ids = {number: runs.by_run[run].id for number, run in block.runs.items()}
        if not ids:
            raise WireError(f"an image for table {block.table} names no run")
        cases = " ".join(f"WHEN {int(number)} THEN {own}" for number, own in ids.items())
        translated = {c: f"CASE {c} {cases} END AS {c}" for c in ("lr", "ur")}
        return ", ".join(translated.get(name, name) for name in self._names)

    def rows(self) -> Iterator[Row]:
        """All staged rows, in slices."""
        last = 0
        while found := select(
            self.db, ["n", *self._names], f"FROM {self.source} WHERE n > ? ORDER BY n LIMIT 500", (last,)
        ):
            last = found[-1][0]
            for row in found:
                yield row[1:]

    def row(self, number: int) -> Row:
        """One staged row by its ``n``."""
        return select(self.db, self._names, f"FROM {self.source} WHERE n = ?", (number,))[0]

    def drop(self) -> None:
        """Forget the rows."""
        if self._slot is not None:
            self.db.deserialize(self._slot, _EMPTY)
        self.db.execute(f"DROP TABLE IF EXISTS {self._copied}")


def _empty_database() -> bytes:
    with closing(apsw.Connection(":memory:")) as db:
        db.execute("CREATE TABLE r(k1)")
        return db.serialize("main")


_EMPTY = _empty_database()


def know(db: apsw.Connection, runs: Runs, sender: int, seen: Vector) -> None:
    """Note what the sender had seen at its oldest write in the group: by SQL a version is known or contested."""
    db.execute(f"DELETE FROM {_KNOWN}")
    known = {0: _CLOCK_MAX, runs.by_run[sender].id: _CLOCK_MAX}
    known |= {runs.by_run[run].id: clock for run, clock in seen.items() if run in runs.by_run and run != sender}
    db.executemany(f"INSERT INTO {_KNOWN} VALUES (?, ?)", known.items())


def apply_plain(rows: Rows, stage: Stage, horizon: Vector) -> list[Row]:
    """Write every staged row whose outcome is plain; returns the contested ones.

    Raises apsw.ConstraintError if the table refuses a row; the caller then undoes it and resolves row by row.
    """
    db, table, source = rows.db, rows.table, stage.source
    width = len(table.key)
    keys = key_columns(width)
    # One look spares three: rows of keys beyond all known ones, as applications append them, are contested by none.
    facts = f"SELECT min(l), max(dead), min(k1) > (SELECT max(k1) FROM {rows.side}) FROM {source}"
    oldest, any_dead, beyond = all_rows(db, facts)[0]
    if oldest is not None and oldest <= max(horizon.values(), default=0):
        _drop_forgotten(rows, stage, horizon)
    contested = [] if beyond else _take_contested(rows, stage)
    db.execute(
        f"INSERT INTO {rows.side}({keys}, l, lr, dead, u, ur, x) "
        f"SELECT {keys}, l, lr, dead, u, ur, x FROM {source} WHERE true ON CONFLICT({keys}) DO UPDATE SET "
        "l = excluded.l, lr = excluded.lr, dead = excluded.dead, u = excluded.u, ur = excluded.ur, x = excluded.x"
    )
    base = ", ".join(quote(k) for k in table.key_names)
    if any_dead:
        db.execute(f"DELETE FROM {quote(table.name)} WHERE ({base}) IN (SELECT {keys} FROM {source} WHERE dead)")
    names = listed((*table.key_names, *table.columns))
    values = "".join(f", v{i + 1}" for i in range(len(table.columns)))
    db.execute(
        f"INSERT INTO {quote(table.name)}({names}) SELECT {keys}{values} FROM {source} WHERE NOT dead "
        f"{rows.on_conflict(table.columns)}"
    )
    return contested


def _drop_forgotten(rows: Rows, stage: Stage, horizon: Vector) -> None:
    """Rows that are absent here and whose life is at or below the horizon were deleted and forgotten."""
    ids = {rows.runs.by_run[run].id: clock for run, clock in horizon.items() if run in rows.runs.by_run}
    below = " OR ".join(["i.l = 0", *(f"(i.lr = {run} AND i.l <= {clock})" for run, clock in ids.items())])
    width = len(rows.table.key)
    side = " AND ".join(f"s.k{n + 1} = i.k{n + 1}" for n in range(width))
    base = " AND ".join(f"b.{quote(k.name)} = i.k{n + 1}" for n, k in enumerate(rows.table.key))
    stage.db.execute(
        f"DELETE FROM {stage.table} WHERE rowid IN (SELECT i.n FROM {stage.source} AS i WHERE ({below}) "
        f"AND NOT EXISTS (SELECT 1 FROM {rows.side} AS s WHERE {side}) "
        f"AND NOT EXISTS (SELECT 1 FROM {quote(rows.table.name)} AS b WHERE {base}))"
    )


def _take_contested(rows: Rows, stage: Stage) -> list[Row]:
    """Take out of the stage the rows that need the resolver: both sides wrote, or versions differ by column."""
    side = " AND ".join(f"s.k{n + 1} = i.k{n + 1}" for n in range(len(rows.table.key)))
    known = f"coalesce((SELECT clock FROM {_KNOWN} WHERE id = coalesce(s.ur, s.lr)), 0)"
    newer_life = f"i.l > s.l AND (s.dead OR (s.x IS NULL AND coalesce(s.u, s.l) <= {known}))"
    same_life = "i.l = s.l AND i.lr = s.lr AND i.dead = s.dead AND i.x IS NULL AND s.x IS NULL"
    newer_update = f"i.u IS NOT NULL AND ((s.u IS NULL AND i.u > s.l) OR (i.u > s.u AND s.u <= {known}))"
    plain = f"({newer_life}) OR ({same_life} AND (({newer_update}) OR (i.u IS s.u AND i.ur IS s.ur)))"
    found = all_rows(
        stage.db, f"SELECT i.n FROM {stage.source} AS i JOIN {rows.side} AS s ON {side} WHERE NOT ({plain})"
    )
    contested = [stage.row(number) for (number,) in found]
    stage.db.executemany(f"DELETE FROM {stage.table} WHERE rowid = ?", found)
    return contested
