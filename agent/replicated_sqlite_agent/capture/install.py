"""Puts capture into the file and keeps it right when the application changes its schema.

Everything happens in the caller's write transaction, after a fold: masks are positions of the capture that wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import apsw
import msgspec

from replicated_sqlite_agent.capture.feeds import feed_triggers
from replicated_sqlite_agent.capture.triggers import (
    KIND_FACTOR,
    LOG,
    MASK_COLUMNS_MAX,
    NOW_MS,
    capture_triggers,
    read_only_triggers,
)
from replicated_sqlite_agent.changes import Kind
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote, side
from replicated_sqlite_agent.database.own_tables import create_side_table, key_columns, widen_log
from replicated_sqlite_agent.database.schema import Schema, Table, read_schema
from replicated_sqlite_agent.settings import Merge, Tables

_names = msgspec.msgpack.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What the configuration says about tables."""

    node: str
    tables: Tables = field(default_factory=Tables)
    read_only: bool = False

    def by_column(self, table: str) -> bool:
        """Whether this table merges column by column."""
        return self.tables.policy(table).merge is Merge.COLUMN_LWW


@dataclass(frozen=True, slots=True)
class Captured:
    """A table under capture."""

    table: Table
    number: int
    """Its number in the log."""
    by_column: bool


@dataclass(frozen=True, slots=True)
class Catalog:
    """All tables under capture, as of one value of SQLite's schema cookie."""

    schema_version: int
    by_number: dict[int, Captured]
    left_out: dict[str, str]

    def named(self, name: str) -> Captured | None:
        """The captured table of this name (SQLite's names ignore the case of ASCII letters)."""
        wanted = name.lower()
        return next((c for c in self.by_number.values() if c.table.name.lower() == wanted), None)


@dataclass(frozen=True, slots=True)
class _Known:
    number: int
    name: str
    root: int
    columns: tuple[str, ...]


def install(db: apsw.Connection, options: CaptureOptions, *, founding: bool) -> Catalog:
    """Make capture fit the schema that the file has now; idempotent.

    ``founding``: rows already there keep the version (0, 0) instead of being taken as new writes.
    """
    schema = read_schema(db, options.tables.selects)
    known = _known_tables(db)
    known = _follow_renames(db, schema, known)
    for name in known.keys() - {n.lower() for n in schema.tables}:
        _forget(db, known.pop(name))
    widen_log(db, max((len(t.key) for t in schema.tables.values()), default=1))
    by_number: dict[int, Captured] = {}
    for table in schema.tables.values():
        captured = _install_table(db, table, known.get(table.name.lower()), options, founding=founding)
        by_number[captured.number] = captured
    _install_feeds(db, schema, by_number)
    version = int(db.pragma("schema_version"))
    return Catalog(version, by_number, schema.left_out)


def _known_tables(db: apsw.Connection) -> dict[str, _Known]:
    rows = all_rows(db, f"SELECT number, name, root, columns FROM {PREFIX}tables")
    return {name.lower(): _Known(number, name, root, tuple(_names.decode(blob))) for number, name, root, blob in rows}


def _root(db: apsw.Connection, table: str) -> int:
    query = "SELECT rootpage FROM main.sqlite_schema WHERE type = 'table' AND name = ? COLLATE NOCASE"
    return int(scalar(db, query, (table,)) or 0)


def _follow_renames(db: apsw.Connection, schema: Schema, known: dict[str, _Known]) -> dict[str, _Known]:
    """A table whose name is gone while a new name has its root page and our triggers was renamed."""
    present = {name.lower() for name in schema.tables}
    gone = {entry.root: entry for name, entry in known.items() if name not in present}
    for name in schema.tables:
        entry = gone.get(_root(db, name))
        if name.lower() in known or entry is None or not _own_triggers(db, name):
            continue
        db.execute(f"ALTER TABLE {side(entry.name)} RENAME TO {side(name)}")
        db.execute(f"UPDATE {PREFIX}tables SET name = ? WHERE number = ?", (name, entry.number))
        db.execute(f"UPDATE {PREFIX}hidden SET name = ? WHERE name = ?", (name, entry.name))
        del known[entry.name.lower()]
        known[name.lower()] = replace(entry, name=name)
    return known


def _forget(db: apsw.Connection, entry: _Known) -> None:
    """The application dropped this table, or it is no longer to be replicated."""
    for trigger in _own_triggers(db, entry.name):
        db.execute(f"DROP TRIGGER {quote(trigger)}")
    db.execute(f"DROP TABLE IF EXISTS main.{side(entry.name)}")
    db.execute(f"DELETE FROM {PREFIX}tables WHERE number = ?", (entry.number,))
    db.execute(f"DELETE FROM {PREFIX}hidden WHERE name = ?", (entry.name,))
    db.execute(f"DELETE FROM {LOG} WHERE top / {KIND_FACTOR} = ? AND {_not_newest()}", (entry.number,))


def _not_newest() -> str:
    return f"seq < (SELECT max(seq) FROM {LOG})"


def _own_triggers(db: apsw.Connection, table: str) -> dict[str, str]:
    query = (
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE "
        "AND substr(name, 1, ?) = ?"
    )
    return dict(all_rows(db, query, (table, len(PREFIX), PREFIX)))


def _install_table(
    db: apsw.Connection, table: Table, known: _Known | None, options: CaptureOptions, *, founding: bool
) -> Captured:
    present = _own_triggers(db, table.name)
    if known is not None and not _same_shape(db, table):
        _forget(db, known)
        known, present = None, {}
    number = known.number if known is not None else _next_number(db)
    # A key whose bytes may change under it is a value without a version of its own: such a row merges whole.
    by_column = options.by_column(table.name) and table.key_is_exact
    wanted = capture_triggers(table, number, by_column)
    if options.read_only:
        wanted |= read_only_triggers(table, options.node)
    if known is None:
        # Named with its schema: an unqualified name would be looked for in attached databases as well.
        db.execute(f"DROP TABLE IF EXISTS main.{side(table.name)}")
        create_side_table(db, table)
        if table.keyless:
            _number_founding_rows(db, table)
    if wanted != present:
        for trigger in present:
            db.execute(f"DROP TRIGGER {quote(trigger)}")
        for sql in wanted.values():
            db.execute(sql)
    if not founding and not present:
        _log_rows_of_the_gap(db, table, number)
    added = [c for c in table.columns if known is not None and c not in known.columns]
    if added:
        _begin_columns(db, table, number, added)
    if table.keyless:
        _keep_rowids(db, table)
    columns = msgspec.msgpack.encode(table.columns)
    db.execute(
        f"INSERT OR REPLACE INTO {PREFIX}tables(number, name, columns, root) VALUES (?, ?, ?, ?)",
        (number, table.name, columns, _root(db, table.name)),
    )
    return Captured(table, number, by_column)


def _same_shape(db: apsw.Connection, table: Table) -> bool:
    """Whether the side table fits the key that the table has now."""
    rows = scalar(db, "SELECT count(*) FROM pragma_table_info(?) WHERE pk", (f"{PREFIX}v_{table.name}",))
    names = [r[0] for r in db.execute("SELECT name FROM pragma_table_info(?)", (f"{PREFIX}v_{table.name}",))]
    keyless = "number" in names
    return bool(names) and keyless == table.keyless and (keyless or rows == len(table.key))


def _next_number(db: apsw.Connection) -> int:
    used = f"SELECT max(number) FROM {PREFIX}tables UNION ALL SELECT max(top) / {KIND_FACTOR} FROM {LOG}"
    return max((row[0] or 0 for row in db.execute(used)), default=0) + 1


def _number_founding_rows(db: apsw.Connection, table: Table) -> None:
    """Rows without a key are identified by run 0 and their rowid when replication began, the same in every copy."""
    db.execute(
        f"INSERT INTO {side(table.name)}(k1, run, number, l, lr, dead) "
        f"SELECT rowid, 0, rowid, 0, 0, 0 FROM {quote(table.name)} WHERE true"
    )


def _log_rows_of_the_gap(db: apsw.Connection, table: Table, number: int) -> None:
    """The table had no capture for a while (it is new, or was rebuilt): keys that came or went are local writes."""
    width = len(table.key)
    columns = key_columns(width)
    keys = listed(table.key_names, "t.")
    on = " AND ".join(f"s.k{i + 1} = t.{quote(k.name)} COLLATE {k.collation}" for i, k in enumerate(table.key))
    some_key = " AND ".join(f"t.{quote(k.name)} IS NOT NULL" for k in table.key)
    db.execute(
        f"INSERT INTO {LOG}(top, ts, mask, {columns}) "
        f"SELECT {number * KIND_FACTOR + Kind.INSERT}, {NOW_MS}, -1, {keys} "
        f"FROM {quote(table.name)} AS t LEFT JOIN {side(table.name)} AS s ON {on} "
        f"WHERE {some_key} AND (s.l IS NULL OR s.dead)"
    )
    where = " AND ".join(f"t.{quote(k.name)} = s.k{i + 1} COLLATE {k.collation}" for i, k in enumerate(table.key))
    hidden = f"SELECT 1 FROM {PREFIX}hidden WHERE name = ?"
    if db.execute(hidden, (table.name,)).fetchone() is not None:
        return
    db.execute(
        f"INSERT INTO {LOG}(top, ts, mask, {columns}) SELECT {number * KIND_FACTOR + Kind.DELETE}, {NOW_MS}, -1, "
        f"{key_columns(width, 's.')} FROM {side(table.name)} AS s WHERE NOT s.dead AND s.k1 IS NOT NULL "
        f"AND NOT EXISTS (SELECT 1 FROM {quote(table.name)} AS t WHERE {where})"
    )


def _begin_columns(db: apsw.Connection, table: Table, number: int, added: list[str]) -> None:
    """The application added columns: in rows there before they are as old as the row's life, whoever wrote it since.

    Rows where one is not its default were written before capture fitted the new schema: a local write of now.
    """
    function = f"{PREFIX}begin"
    db.create_scalar_function(function, partial(_with_columns, added), 3)
    db.execute(
        f"UPDATE {side(table.name)} AS s SET x = {function}(s.x, s.l, r.run) FROM {PREFIX}runs AS r "
        "WHERE r.id = s.lr AND s.u IS NOT NULL AND NOT s.dead"
    )
    db.create_scalar_function(function, None, 3)
    defaults = dict(all_rows(db, "SELECT name, dflt_value FROM pragma_table_info(?)", (table.name,)))
    written = " OR ".join(f"{quote(c)} IS NOT ({defaults[c] or 'NULL'}) COLLATE BINARY" for c in added)
    mask = sum(1 << table.columns.index(c) for c in added) if len(table.columns) <= MASK_COLUMNS_MAX else -1
    some_key = " AND ".join(f"{quote(k.name)} IS NOT NULL" for k in table.key)
    db.execute(
        f"INSERT INTO {LOG}(top, ts, mask, {key_columns(len(table.key))}) "
        f"SELECT {number * KIND_FACTOR + Kind.UPDATE}, {NOW_MS}, {mask}, {listed(table.key_names)} "
        f"FROM {quote(table.name)} WHERE {some_key} AND ({written})"
    )


def _with_columns(added: list[str], x: bytes | None, life: int, run: int) -> bytes:
    """The column versions of a side table with more columns, as old as the life."""
    versions = msgspec.msgpack.decode(x)["c"] if x else {}
    return msgspec.msgpack.encode({"c": versions | {c: (life, run) for c in added}})


def _keep_rowids(db: apsw.Connection, table: Table) -> None:
    """VACUUM renumbers the rows of a table that has neither key nor index; an empty index of ours prevents it."""
    index = quote(f"{PREFIX}rowids_{table.name}")
    db.execute(f"CREATE INDEX IF NOT EXISTS {index} ON {quote(table.name)}((1)) WHERE 0")


def _install_feeds(db: apsw.Connection, schema: Schema, by_number: dict[int, Captured]) -> None:
    """TEMP triggers run on the agent's connection although triggers are off there: they feed FTS5 and the like."""
    query = "SELECT name FROM sqlite_temp_schema WHERE type = 'trigger' AND substr(name, 1, ?) = ?"
    for (name,) in all_rows(db, query, (len(PREFIX), PREFIX)):
        db.execute(f"DROP TRIGGER temp.{quote(name)}")
    for captured in by_number.values():
        rows = all_rows(
            db,
            "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE "
            "AND substr(name, 1, ?) <> ?",
            (captured.table.name, len(PREFIX), PREFIX),
        )
        for name, sql in rows:
            for create in feed_triggers(name, sql, schema.virtual):
                db.execute(create)
