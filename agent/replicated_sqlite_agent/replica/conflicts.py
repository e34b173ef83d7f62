"""The conflict log: every write that a merge discarded although its writer could not know.

The identity of a record names the lost write, so all replicas that discard it write one record, repetition none.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import apsw

from replicated_sqlite_agent.changes import Key, Value
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import all_rows
from replicated_sqlite_agent.database.identifiers import PREFIX
from replicated_sqlite_agent.merge.resolver import Loss
from replicated_sqlite_agent.values import pack_any, pack_values, unpack_any, unpack_values

_RECORD = (
    f"INSERT OR IGNORE INTO {PREFIX}conflicts"
    "(name, key, column, clock, run, winner_clock, winner_run, rule, loser, winner, at_ms) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def record(
    db: apsw.Connection,
    counters: Counters,
    table: str,
    key: Key,
    losses: tuple[Loss, ...],
    is_own: Callable[[int], bool],
) -> None:
    """Store losses of one row. A loss already stored is not counted again, one of another node's writes never.

    Every replica that discards a write records it; counting it only where it was made makes the sum right.
    """
    for loss in losses:
        values = (pack_any(loss.value), pack_any(loss.winner_value), time.time_ns() // 1_000_000)
        db.execute(_RECORD, (table, pack_values(key), loss.column, *loss.version, *loss.winner, loss.rule, *values))
        if db.changes() and is_own(loss.version.run):
            counters.conflicts[table, loss.rule] += 1


def bound(db: apsw.Connection, rows_max: int) -> int:
    """Drop the oldest records above the bound; returns how many."""
    newest = f"SELECT id FROM {PREFIX}conflicts ORDER BY id DESC LIMIT 1 OFFSET ?"
    db.execute(f"DELETE FROM {PREFIX}conflicts WHERE id <= ({newest})", (rows_max,))
    return db.changes()


def page(db: apsw.Connection, after: int, limit: int) -> list[dict[str, object]]:
    """Records with an id above ``after``, oldest first, as JSON-ready objects."""
    query = (
        f"SELECT id, name, key, column, clock, run, winner_clock, winner_run, rule, loser, winner, at_ms "
        f"FROM {PREFIX}conflicts WHERE id > ? ORDER BY id LIMIT ?"
    )
    return [
        {
            "id": row[0],
            "table": row[1],
            "key": [readable(v) for v in unpack_values(row[2])],
            "column": row[3],
            "lost": {"clock": row[4], "run": f"{row[5]:012x}", "value": readable(unpack_any(row[9]))},
            "kept": {"clock": row[6], "run": f"{row[7]:012x}", "value": readable(unpack_any(row[10]))},
            "rule": row[8],
            "at_ms": row[11],
        }
        for row in all_rows(db, query, (after, limit))
    ]


def readable(value: Value | dict[str, Value]) -> object:
    """A value as JSON can carry it: bytes as {"blob": hex}, text that is not UTF-8 as {"text": hex}."""
    if isinstance(value, dict):
        return {column: readable(v) for column, v in value.items()}
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return {"text": value.data.hex()}
