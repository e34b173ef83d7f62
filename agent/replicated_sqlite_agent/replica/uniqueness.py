"""Which rows a table shows when merged rows cannot stand beside each other under a UNIQUE index.

Rows are taken newest claim first and each that collides with none already shown is shown; the others wait hidden. That
is a function of the merged rows alone, so every order of arrival ends in the same table, and a hidden row returns by
itself when its place is free. Newest first, because what an application wrote with success must stay visible.
"""

from __future__ import annotations

import apsw

from replicated_sqlite_agent.changes import Key, Value, Version
from replicated_sqlite_agent.database.exact import execute, select
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.values import pack_values

Values = dict[str, Value]


def settle(rows: Rows, changed: list[Key]) -> int:
    """Decide again for the changed keys, all hidden rows, and every row they collide with; returns how many are hidden.

    If nothing is hidden and nothing collides, nothing is written.
    """
    rivals = _rivals(rows, [*changed, *rows.hidden_keys()])
    ordered = sorted(rivals.values(), key=lambda rival: (_claim(rows, rival[0]), pack_values(rival[0])), reverse=True)
    for key, _ in ordered:
        rows.erase(key)
    hidden = 0
    for key, values in ordered:
        try:
            rows.write(key, values)
            rows.unhide(key)
        except apsw.ConstraintError:
            rows.hide(key, values)
            hidden += 1
    return hidden


def _claim(rows: Rows, key: Key) -> Version:
    """The largest version among the columns of UNIQUE indexes."""
    stored = rows.entry(key)
    if stored is None:
        return Version(0, 0)
    columns = {c for index in rows.table.unique for c in index.columns or rows.table.columns}
    return max(stored.state.version_of(c) for c in columns)


def _rivals(rows: Rows, keys: list[Key]) -> dict[Key, tuple[Key, Values]]:
    """The living ones among these keys with their values, and all rows that collide with them, and so on."""
    found: dict[Key, tuple[Key, Values]] = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        same = rows.table.same_key(key)
        if same in found:
            continue
        values = rows.visible(key) or rows.hidden(key)
        if values is None:
            continue
        key = rows.exact_key(key)
        found[same] = (key, values)
        waiting += displaced(rows, key, values)
    return found


def displaced(rows: Rows, key: Key, values: Values) -> list[Key]:
    """The keys of the shown rows that this row cannot stand beside.

    SQLite itself says it: the row is written with OR REPLACE in a savepoint, a TEMP trigger notes what that deletes,
    and all is undone. So partial, expression and collated indexes need no understanding of their own.
    """
    db, table = rows.db, rows.table
    note = f"temp.{quote(f'{PREFIX}displaced')}"
    columns = ", ".join(f"k{i + 1}" for i in range(len(table.key)))
    names = (*table.key_names, *(c for c in table.columns if c in values))
    db.execute("SAVEPOINT displaced")
    try:
        db.execute(f"CREATE TEMP TABLE {quote(f'{PREFIX}displaced')}({columns})")
        db.execute(
            f"CREATE TEMP TRIGGER {quote(f'{PREFIX}note')} AFTER DELETE ON main.{quote(table.name)} "
            f"BEGIN INSERT INTO {quote(f'{PREFIX}displaced')} VALUES ({listed(table.key_names, 'OLD.')}); END"
        )
        rows.erase(key)
        db.execute(f"DELETE FROM {note}")
        db.pragma("recursive_triggers", True)
        marks = ", ".join("?" * len(names))
        params = (*key, *(values[c] for c in names[len(key) :]))
        try:
            execute(db, f"INSERT OR REPLACE INTO {quote(table.name)}({listed(names)}) VALUES ({marks})", params)
        except apsw.ConstraintError:
            return []
        found = select(db, [f"k{i + 1}" for i in range(len(table.key))], f"FROM {note}")
        return [row for row in found if table.same_key(row) != table.same_key(key)]
    finally:
        db.pragma("recursive_triggers", False)
        db.execute("ROLLBACK TO displaced")
        db.execute("RELEASE displaced")
