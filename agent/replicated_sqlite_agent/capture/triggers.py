"""The SQL of capture. Pure: a table in, triggers out.

Every construct works with ``trusted_schema=OFF``, with any outer conflict clause (a plain append has no conflict) and
on SQLite since 3.35: no JSON, no custom function, nothing newer than ``julianday``.
"""

from __future__ import annotations

from replicated_sqlite_agent.changes import Kind
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, literal, quote
from replicated_sqlite_agent.database.schema import KeyColumn, Table, UniqueIndex
from replicated_sqlite_agent.database.sqltext import tokens

LOG = quote(f"{PREFIX}log")
NOW_MS = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"
"""Wall clock in milliseconds. ``unixepoch('subsec')`` would silently be NULL before SQLite 3.42."""

MASK_COLUMNS_MAX = 62
"""More value columns than this do not fit one mask: such a table takes mask -1 (all columns)."""

KIND_FACTOR = 8
"""``top`` in the log is table number * this + kind."""


def trigger_prefix(table: str) -> str:
    """What the names of all our triggers of a table start with."""
    return f"{PREFIX}{table}_"


def capture_triggers(table: Table, number: int, masked: bool) -> dict[str, str]:
    """Name -> CREATE TRIGGER for one table. ``masked`` (column-lww) logs which columns an update changed.

    Only masks and UNIQUE checks name value columns: a trigger that names a column makes the application's
    ``ALTER TABLE DROP COLUMN`` fail.
    """
    changed = _mask(table) if masked and len(table.columns) <= MASK_COLUMNS_MAX else None
    same, differs = _key_same(table), f"NOT ({_key_same(table)})"
    update = f"{same} AND ({changed}) <> 0" if changed else same
    triggers = {
        "insert": ("AFTER INSERT", None, [_log(table, number, Kind.INSERT, "NEW")]),
        "update": ("AFTER UPDATE", update, [_log(table, number, Kind.UPDATE, "NEW", changed or "-1")]),
        "rekey": (
            "AFTER UPDATE",
            differs,
            [_log(table, number, Kind.DELETE, "OLD"), _log(table, number, Kind.INSERT, "NEW")],
        ),
        "delete": ("AFTER DELETE", None, [_log(table, number, Kind.DELETE, "OLD")]),
    }
    if table.unique:
        touched = [_touched(table, number, index) for index in table.unique]
        triggers["claim"] = ("BEFORE INSERT", None, touched)
        triggers["reclaim"] = (f"BEFORE UPDATE{_of_unique(table)}", None, touched)
    return {
        trigger_prefix(table.name) + name: _trigger(table, trigger_prefix(table.name) + name, event, when, body)
        for name, (event, when, body) in triggers.items()
    }


def read_only_triggers(table: Table, node: str) -> dict[str, str]:
    """Triggers that refuse the application's writes on a read-only replica; the agent's connection runs no triggers."""
    text = literal(f"node {node} is a read-only replica (mode: read-only): write to table {table.name} on another node")
    body = [f"SELECT RAISE(ABORT, {text})"]
    return {
        f"{trigger_prefix(table.name)}refuse_{event.lower()}": _trigger(
            table, f"{trigger_prefix(table.name)}refuse_{event.lower()}", f"BEFORE {event}", None, body
        )
        for event in ("INSERT", "UPDATE", "DELETE")
    }


def _trigger(table: Table, name: str, event: str, when: str | None, body: list[str]) -> str:
    condition = f" WHEN {when}" if when else ""
    statements = " ".join(f"{s};" for s in body)
    return f"CREATE TRIGGER {quote(name)} {event} ON {quote(table.name)}{condition} BEGIN {statements} END"


def _log(table: Table, number: int, kind: Kind, row: str, mask: str = "-1") -> str:
    columns = ", ".join(f"k{i + 1}" for i in range(len(table.key)))
    values = f"{number * KIND_FACTOR + kind}, {NOW_MS}, {mask}, {listed(table.key_names, row + '.')}"
    return f"INSERT INTO {LOG}(top, ts, mask, {columns}) VALUES ({values})"


def _key_same(table: Table) -> str:
    # No "UPDATE OF key": SQLite compares names there, and `SET rowid = 5` would pass an OF id unseen.
    return " AND ".join(f"NEW.{quote(k.name)} IS OLD.{quote(k.name)}{_collate(k)}" for k in table.key)


def _collate(column: KeyColumn) -> str:
    return f" COLLATE {column.collation}"


def _mask(table: Table) -> str:
    # BINARY and typeof: else 'a' -> 'A' in a NOCASE column and 1 -> 1.0 would be no changes.
    bits = (
        f"((NEW.{c} IS NOT OLD.{c} COLLATE BINARY OR typeof(NEW.{c}) <> typeof(OLD.{c})) << {i})"
        for i, c in enumerate(map(quote, table.columns))
    )
    return " | ".join(bits) or "0"


def _of_unique(table: Table) -> str:
    """`` OF columns`` if every UNIQUE index names plain columns other than the rowid alias, else nothing."""
    columns: list[str] = []
    for index in table.unique:
        if index.columns is None or (table.rowid_alias and table.key[0].name in index.columns):
            return ""
        columns += [c for c in index.columns if c not in columns]
    return f" OF {listed(columns)}"


def _touched(table: Table, number: int, index: UniqueIndex) -> str:
    """Log each other row that has the value which NEW is about to claim in one UNIQUE index."""
    columns = ", ".join(f"k{i + 1}" for i in range(len(table.key)))
    head = f"INSERT INTO {LOG}(top, ts, mask, {columns}) SELECT {number * KIND_FACTOR + Kind.TOUCHED}, {NOW_MS}, 0, "
    return (
        f"{head}{listed(table.key_names)} FROM {quote(table.name)} WHERE {collides(table, index)} AND ({_other(table)})"
    )


def collides(table: Table, index: UniqueIndex) -> str:
    """SQL: the row at hand has the same value in this index as NEW. NULLs collide with nothing.

    An expression is evaluated for NEW by naming NEW's columns in a subquery, so its text need not be understood; only
    columns whose name stands in it, since the application can drop no column that a trigger names.
    """
    new = "(SELECT " + (", ".join(f"NEW.{quote(c)} AS {quote(c)}" for c in _named(table, index)) or "1") + ")"
    if index.columns is not None:
        parts = [f"{term} = NEW.{term} COLLATE {collation}" for term, collation in index.terms]
    else:
        parts = [f"({term}) = (SELECT ({term}) FROM {new}) COLLATE {collation}" for term, collation in index.terms]
    if index.where:
        parts += [f"({index.where})", f"(SELECT ({index.where}) FROM {new})"]
    return " AND ".join(parts)


def _named(table: Table, index: UniqueIndex) -> list[str]:
    """The columns whose name occurs in the text of the index: all that it uses, perhaps some more."""
    text = " ".join([*(term for term, _ in index.terms), index.where or ""])
    words = {token.name.lower() for token in tokens(text)}
    columns = (*(() if table.keyless else table.key_names), *table.columns, *table.generated)
    return [column for column in columns if column.lower() in words]


def _other(table: Table) -> str:
    different = " OR ".join(f"{quote(k.name)} IS NOT NEW.{quote(k.name)}{_collate(k)}" for k in table.key)
    if table.rowid_alias or table.keyless:
        # Before an INSERT without an id, NEW.id is -1: the row that really has -1 must not be taken for it.
        different += f" OR {quote(table.key[0].name)} = -1"
    return different
