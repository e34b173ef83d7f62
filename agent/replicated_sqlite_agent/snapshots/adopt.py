"""A file that was never replicated meets a cluster: its rows and the cluster's become one. Runs on the writer thread.

Where both have a row, the cluster's stays and a differing local one is recorded as a conflict; what only the file has
becomes a new write of its first run (`merge`) or is dropped (`replace`); what only the cluster has is taken.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apsw

from replicated_sqlite_agent.capture.install import Captured, CaptureOptions, install
from replicated_sqlite_agent.capture.triggers import KIND_FACTOR, LOG, NOW_MS
from replicated_sqlite_agent.changes import ZERO, Kind, Version
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import all_rows, connect, scalar, write_transaction
from replicated_sqlite_agent.database.exact import select
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote, side
from replicated_sqlite_agent.database.own_tables import (
    Progress,
    create,
    drop_own_objects,
    key_columns,
    read_progress,
    write_progress,
)
from replicated_sqlite_agent.merge.resolver import WHOLE_ROW, Loss
from replicated_sqlite_agent.replica import conflicts

RULE = "adopted"

_COPIED = ("runs", "hidden", "conflicts", "parked", "paused")


def adopt(database: Path, snapshot: Path, options: CaptureOptions, counters: Counters, *, merge: bool) -> None:
    """Merge a fetched snapshot (already made fresh) into the application's own file, in one transaction."""
    db = connect(database)
    try:
        db.execute("ATTACH ? AS snap", (str(snapshot),))
        with write_transaction(db):
            drop_own_objects(db)
            _create_missing_tables(db)
            create(db)
            progress = _snapshot_progress(db)
            write_progress(db, replace(progress, node=options.node))
            for name in _COPIED:
                db.execute(f"DELETE FROM main.{PREFIX}{name}")
                db.execute(f"INSERT INTO main.{PREFIX}{name} SELECT * FROM snap.{PREFIX}{name}")
            catalog = install(db, options, founding=True)
            shared = {row[0].lower() for row in db.execute(f"SELECT name FROM snap.{PREFIX}tables")}
            for captured in catalog.by_number.values():
                _adopt_table(db, captured, counters, shared=captured.table.name.lower() in shared, merge=merge)
    finally:
        db.close()


def _snapshot_progress(db: apsw.Connection) -> Progress:
    db.execute(f"INSERT OR REPLACE INTO main.{PREFIX}state SELECT * FROM snap.{PREFIX}state")
    return read_progress(db)


def _create_missing_tables(db: apsw.Connection) -> None:
    """Tables, indexes, views and triggers that only the cluster has."""
    objects = all_rows(
        db,
        "SELECT sql FROM snap.sqlite_schema AS s WHERE sql IS NOT NULL AND substr(name, 1, ?) <> ? "
        "AND name NOT IN (SELECT name FROM pragma_table_list WHERE schema = 'snap' AND type = 'shadow') "
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND substr(tbl_name, 1, ?) <> ? "
        "AND NOT EXISTS (SELECT 1 FROM main.sqlite_schema AS m WHERE m.name = s.name COLLATE NOCASE) "
        "ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 WHEN 'view' THEN 2 ELSE 3 END, rowid",
        (len(PREFIX), PREFIX, len(PREFIX), PREFIX),
    )
    for (sql,) in objects:
        db.execute(sql)


def _adopt_table(db: apsw.Connection, captured: Captured, counters: Counters, *, shared: bool, merge: bool) -> None:
    table, number = captured.table, captured.number
    if table.keyless or not shared:
        # Rows without a key have no counterpart; rows of a table that only this file has are all its own.
        if shared and table.keyless:
            _take_keyless(db, captured)
        elif merge:
            _log_all(db, captured)
        return
    width = len(table.key)
    both = " AND ".join(f"l.{quote(k.name)} = s.{quote(k.name)} COLLATE {k.collation}" for k in table.key)
    name = quote(table.name)
    local_only = f"NOT EXISTS (SELECT 1 FROM snap.{name} AS s WHERE {both})"
    some_key = " AND ".join(f"l.{quote(k)} IS NOT NULL" for k in table.key_names)
    if merge:
        _record_differences(db, captured, counters, both)
        top = number * KIND_FACTOR + Kind.INSERT
        db.execute(
            f"INSERT INTO {LOG}(top, ts, mask, {key_columns(width)}) SELECT {top}, {NOW_MS}, -1, "
            f"{listed(table.key_names, 'l.')} FROM main.{name} AS l WHERE {some_key} AND {local_only}"
        )
    else:
        db.execute(f"DELETE FROM main.{name} AS l WHERE {local_only}")
    kept_aside = f"temp.{PREFIX}local"
    db.execute(f"CREATE TEMP TABLE {PREFIX}local AS SELECT * FROM main.{name} AS l WHERE {local_only}")
    shown = [c for c in table.columns if _has_column(db, table.name, c)]
    columns = listed((*table.key_names, *shown))
    target = ", ".join(quote(k.name) + ("" if table.rowid_alias else f" COLLATE {k.collation}") for k in table.key)
    changes = ", ".join(f"{quote(c)} = excluded.{quote(c)}" for c in shown)
    action = f"UPDATE SET {changes}" if changes else "NOTHING"
    db.execute(
        f"INSERT OR REPLACE INTO main.{name}({columns}) SELECT {columns} FROM snap.{name} AS s WHERE "
        f"NOT EXISTS (SELECT 1 FROM main.{name} AS l WHERE {both})"
    )
    db.execute(
        f"INSERT INTO main.{name}({columns}) SELECT {columns} FROM snap.{name} WHERE true "
        f"ON CONFLICT({target}) DO {action}"
    )
    db.execute(f"INSERT INTO main.{side(table.name)} SELECT * FROM snap.{side(table.name)}")
    _record_displaced(db, captured, counters, kept_aside)
    db.execute(f"DROP TABLE {kept_aside}")


def _record_displaced(db: apsw.Connection, captured: Captured, counters: Counters, kept_aside: str) -> None:
    """Local rows that had a UNIQUE value of a row of the cluster had to go: recorded with their values."""
    table = captured.table
    here = " AND ".join(f"m.{quote(k.name)} = l.{quote(k.name)} COLLATE {k.collation}" for k in table.key)
    gone = f"WHERE NOT EXISTS (SELECT 1 FROM main.{quote(table.name)} AS m WHERE {here})"
    columns = [f"l.{quote(c)}" for c in (*table.key_names, *table.columns)]
    width = len(table.key)
    for row in select(db, columns, f"FROM {kept_aside} AS l {gone}"):
        lost = dict(zip(table.columns, row[width:], strict=True))
        loss = Loss(WHOLE_ROW, Version(0, 0), lost, ZERO, None, RULE)
        conflicts.record(db, counters, table.name, row[:width], (loss,), lambda _: True)


def _has_column(db: apsw.Connection, table: str, column: str) -> bool:
    query = "SELECT 1 FROM pragma_table_info(?, 'snap') WHERE name = ? COLLATE NOCASE"
    return db.execute(query, (table, column)).fetchone() is not None


def _record_differences(db: apsw.Connection, captured: Captured, counters: Counters, both: str) -> None:
    """The local row loses where both have one and they differ: its values go to the conflict log."""
    table = captured.table
    shared = [c for c in table.columns if _has_column(db, table.name, c)]
    if not shared:
        return
    differs = " OR ".join(
        f"l.{quote(c)} IS NOT s.{quote(c)} COLLATE BINARY OR typeof(l.{quote(c)}) <> typeof(s.{quote(c)})"
        for c in shared
    )
    width, count = len(table.key), len(shared)
    columns = [f"l.{quote(k)}" for k in table.key_names]
    columns += [f"l.{quote(c)}" for c in shared] + [f"s.{quote(c)}" for c in shared]
    name = quote(table.name)
    rest = f"FROM main.{name} AS l JOIN snap.{name} AS s ON {both} WHERE {differs}"
    for row in select(db, columns, rest):
        lost = dict(zip(shared, row[width : width + count], strict=True))
        kept = dict(zip(shared, row[width + count :], strict=True))
        loss = Loss(WHOLE_ROW, Version(0, 0), lost, ZERO, kept, RULE)
        conflicts.record(db, counters, table.name, row[:width], (loss,), lambda _: True)


def _log_all(db: apsw.Connection, captured: Captured) -> None:
    table, width = captured.table, len(captured.table.key)
    db.execute(f"DELETE FROM {side(table.name)}")
    some_key = " AND ".join(f"{quote(k)} IS NOT NULL" for k in table.key_names)
    db.execute(
        f"INSERT INTO {LOG}(top, ts, mask, {key_columns(width)}) "
        f"SELECT {captured.number * KIND_FACTOR + Kind.INSERT}, {NOW_MS}, -1, {listed(table.key_names)} "
        f"FROM {quote(table.name)} WHERE {some_key}"
    )


def _take_keyless(db: apsw.Connection, captured: Captured) -> None:
    """Rows without a key: the cluster's are taken with their names, the local ones become new rows behind them."""
    table, name = captured.table, quote(captured.table.name)
    columns = listed(table.columns)
    first = int(scalar(db, f"SELECT max(max(rowid), 0) FROM main.{name}") or 0)
    db.execute(f"DELETE FROM {side(table.name)}")
    _log_all(db, captured)
    db.execute(f"INSERT INTO main.{name}(rowid, {columns}) SELECT rowid + {first}, {columns} FROM snap.{name}")
    db.execute(
        f"INSERT INTO main.{side(table.name)} SELECT iif(k1 IS NULL, NULL, k1 + {first}), run, number, l, lr, dead, u, "
        f"ur, x FROM snap.{side(table.name)}"
    )
