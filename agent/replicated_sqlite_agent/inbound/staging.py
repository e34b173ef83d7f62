"""Applies the rows of an SQLite image by SQL: what is decided without a look at values never becomes a Python object.

The rows lie in a TEMP table. Two statements write the plain cases (`resolver.resolve` would take them without a loss);
every contested row is handed back to be resolved one by one. A test holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import apsw

from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.exact import Row, select
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote
from replicated_sqlite_agent.database.own_tables import Runs, key_columns
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.wire import Block, WireError, image_schema

STAGED = f"temp.{PREFIX}staged"
_KNOWN = f"temp.{PREFIX}known"
_CLOCK_MAX = (1 << 63) - 1


def prepare(db: apsw.Connection) -> None:
    """Attach what images are read from; once per connection, outside a transaction."""
    db.execute("ATTACH ':memory:' AS image")
    db.execute(f"CREATE TABLE {_KNOWN}(id INTEGER PRIMARY KEY, clock INTEGER NOT NULL)")


class Stage:
    """The staged rows of one group and one table."""

    def __init__(self, db: apsw.Connection, number: int, keys: int, columns: int) -> None:
        self.db, self.keys, self.columns = db, keys, columns
        self.name = f"{STAGED}_{number}"
        db.execute(f"DROP TABLE IF EXISTS {self.name}")
        shape = image_schema(keys, columns).removeprefix("CREATE TABLE r")
        db.execute(f"CREATE TABLE {self.name}{shape}")
        self.count = 0

    def add(self, block: Block, runs: Runs) -> None:
        """Copy an image's rows, its run numbers made those of this file. Outside a transaction. Raises WireError."""
        assert block.image is not None
        try:
            self.db.deserialize("image", block.image)
            shapes = all_rows(self.db, "SELECT type, name, sql FROM image.sqlite_schema")
            if shapes != [("table", "r", image_schema(self.keys, self.columns))]:
                raise WireError(f"an image for table {block.table} holds something else than rows")
            self.db.execute(f"INSERT INTO {self.name} SELECT {self._columns(block, runs)} FROM image.r")
            self.count += self.db.changes()
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise WireError(f"an image for table {block.table} is damaged: {error}") from error

    def _columns(self, block: Block, runs: Runs) -> str:
        names = image_schema(self.keys, self.columns).removeprefix("CREATE TABLE r(").removesuffix(")").split(", ")
        ids = {number: runs.by_run[run].id for number, run in block.runs.items()}
        if not ids:
            raise WireError(f"an image for table {block.table} names no run")
        cases = " ".join(f"WHEN {int(number)} THEN {own}" for number, own in ids.items())
        translated = {c: f"CASE {c} {cases} END" for c in ("lr", "ur")}
        return ", ".join(translated.get(name, name) for name in names)

    def rows(self) -> Iterator[Row]:
        """All staged rows, in slices."""
        last = 0
        names = image_schema(self.keys, self.columns).removeprefix("CREATE TABLE r(").removesuffix(")").split(", ")
        while found := select(self.db, ["rowid", *names], f"FROM {self.name} WHERE rowid > ? LIMIT 500", (last,)):
            last = found[-1][0]
            for row in found:
                yield row[1:]

    def drop(self) -> None:
        """Forget the rows."""
        self.db.execute(f"DROP TABLE IF EXISTS {self.name}")


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
    db, table, name = rows.db, rows.table, stage.name
    width = len(table.key)
    keys = key_columns(width)
    _drop_forgotten(rows, stage, horizon)
    contested = _take_contested(rows, stage)
    db.execute(
        f"INSERT INTO {rows.side}({keys}, l, lr, dead, u, ur, x) "
        f"SELECT {keys}, l, lr, dead, u, ur, x FROM {name} WHERE true ON CONFLICT({keys}) DO UPDATE SET "
        "l = excluded.l, lr = excluded.lr, dead = excluded.dead, u = excluded.u, ur = excluded.ur, x = excluded.x"
    )
    base = ", ".join(quote(k) for k in table.key_names)
    db.execute(f"DELETE FROM {quote(table.name)} WHERE ({base}) IN (SELECT {keys} FROM {name} WHERE dead)")
    names = listed((*table.key_names, *table.columns))
    values = "".join(f", v{i + 1}" for i in range(len(table.columns)))
    db.execute(
        f"INSERT INTO {quote(table.name)}({names}) SELECT {keys}{values} FROM {name} WHERE NOT dead "
        f"{rows.on_conflict(table.columns)}"
    )
    return contested


def _drop_forgotten(rows: Rows, stage: Stage, horizon: Vector) -> None:
    """Rows that are absent here and whose life is at or below the horizon were deleted and forgotten."""
    oldest = scalar(stage.db, f"SELECT min(l) FROM {stage.name}")
    if oldest is None or oldest > max(horizon.values(), default=0):
        return
    ids = {rows.runs.by_run[run].id: clock for run, clock in horizon.items() if run in rows.runs.by_run}
    below = " OR ".join(["i.l = 0", *(f"(i.lr = {run} AND i.l <= {clock})" for run, clock in ids.items())])
    width = len(rows.table.key)
    side = " AND ".join(f"s.k{n + 1} = i.k{n + 1}" for n in range(width))
    base = " AND ".join(f"b.{quote(k.name)} = i.k{n + 1}" for n, k in enumerate(rows.table.key))
    stage.db.execute(
        f"DELETE FROM {stage.name} AS i WHERE ({below}) AND NOT EXISTS (SELECT 1 FROM {rows.side} AS s WHERE {side}) "
        f"AND NOT EXISTS (SELECT 1 FROM {quote(rows.table.name)} AS b WHERE {base})"
    )


def _take_contested(rows: Rows, stage: Stage) -> list[Row]:
    """Take out of the stage the rows that need the resolver: both sides wrote, or versions differ by column."""
    side = " AND ".join(f"s.k{n + 1} = i.k{n + 1}" for n in range(len(rows.table.key)))
    known = f"coalesce((SELECT clock FROM {_KNOWN} WHERE id = coalesce(s.ur, s.lr)), 0)"
    newer_life = f"i.l > s.l AND (s.dead OR (s.x IS NULL AND coalesce(s.u, s.l) <= {known}))"
    same_life = "i.l = s.l AND i.lr = s.lr AND i.dead = s.dead AND i.x IS NULL AND s.x IS NULL"
    newer_update = f"i.u IS NOT NULL AND (s.u IS NULL OR (i.u > s.u AND s.u <= {known}))"
    plain = f"({newer_life}) OR ({same_life} AND (({newer_update}) OR (i.u IS s.u AND i.ur IS s.ur)))"
    found = all_rows(
        stage.db, f"SELECT i.rowid FROM {stage.name} AS i JOIN {rows.side} AS s ON {side} WHERE NOT ({plain})"
    )
    if not found:
        return []
    names = image_schema(stage.keys, stage.columns).removeprefix("CREATE TABLE r(").removesuffix(")").split(", ")
    contested = []
    for (rowid,) in found:
        contested += select(stage.db, names, f"FROM {stage.name} WHERE rowid = ?", (rowid,))
    stage.db.executemany(f"DELETE FROM {stage.name} WHERE rowid = ?", found)
    return contested
