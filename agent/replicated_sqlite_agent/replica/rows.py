"""Rows of one table with their versions: the table, its side table and its hidden rows as one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import apsw
import msgspec

from replicated_sqlite_agent.capture.install import Captured
from replicated_sqlite_agent.changes import ZERO, Key, RawText, RowState, Value, Version
from replicated_sqlite_agent.database.exact import Row, execute, select
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote, side
from replicated_sqlite_agent.database.own_tables import Runs, key_columns
from replicated_sqlite_agent.values import pack_values, unpack_values

Extras = dict[str, dict[str, tuple[int, int]]]
_extras = msgspec.msgpack.Decoder(Extras)


def pack_versions(columns: Mapping[str, Version]) -> bytes | None:
    """Column versions as the ``x`` of a side table: {"c": {column: (clock, run)}}, None if there are none."""
    return msgspec.msgpack.encode({"c": columns}) if columns else None


def unpack_versions(x: bytes | None) -> dict[str, Version]:
    """The inverse of `pack_versions`."""
    return {c: Version(*v) for c, v in _extras.decode(x).get("c", {}).items()} if x else {}


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of a key. ``state`` carries values only where they were asked for."""

    state: RowState
    local: int | None
    """The rowid of a row of a table without a primary key."""


class Rows:
    """Reads and writes rows of one captured table on one connection."""

    def __init__(self, db: apsw.Connection, captured: Captured, runs: Runs) -> None:
        self.db, self.table, self.runs, self.captured = db, captured.table, runs, captured
        table, name = captured.table, quote(captured.table.name)
        width = len(table.key)
        self.may_hide = True
        """False on a connection that alone writes and has found no hidden row of this table: spares a look per row."""
        self.columns = table.columns
        self._shown = [quote(c) for c in table.columns] or ["1"]
        self.where_key = " AND ".join(
            f"{quote(k.name)} = ?" + ("" if table.rowid_alias or table.keyless else f" COLLATE {k.collation}")
            for k in table.key
        )
        self.side = side(table.name)
        self.where_side = (
            "run = ? AND number = ?" if table.keyless else " AND ".join(f"k{i + 1} = ?" for i in range(width))
        )
        side_key = "k1, run, number" if table.keyless else key_columns(width)
        target = "run, number" if table.keyless else key_columns(width)
        marks = ", ".join("?" * (3 if table.keyless else width))
        moved = "k1 = excluded.k1, " if table.keyless else ""
        self._entry = f"FROM {self.side} WHERE {self.where_side}"
        local = "k1" if table.keyless else "NULL"
        self._select_entry = f"SELECT l, lr, dead, u, ur, x, {local} {self._entry}"
        self._row = f"FROM {name} WHERE {self.where_key}"
        self.put_entry_sql = (
            f"INSERT INTO {self.side}({side_key}, l, lr, dead, u, ur, x) VALUES ({marks}, ?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT({target}) DO UPDATE SET {moved}l = excluded.l, lr = excluded.lr, dead = excluded.dead, "
            "u = excluded.u, ur = excluded.ur, x = excluded.x"
        )
        self._delete_row = f"DELETE FROM {name} WHERE {self.where_key}"
        self._upsert = self._upsert_sql(table.columns)
        self._insert = self._insert_sql(table.columns)

    # ---- SQL that depends on which columns are known -----------------------------------------------------------

    def _insert_sql(self, columns: tuple[str, ...]) -> str:
        table = self.table
        names = columns if table.keyless else (*table.key_names, *columns)
        if not names:
            return f"INSERT INTO {quote(table.name)} DEFAULT VALUES"
        marks = ", ".join("?" * len(names))
        return f"INSERT INTO {quote(table.name)}({listed(names)}) VALUES ({marks})"

    def _upsert_sql(self, columns: tuple[str, ...]) -> str:
        return f"{self._insert_sql(columns)} {self.on_conflict(columns)}"

    def on_conflict(self, columns: tuple[str, ...]) -> str:
        """``ON CONFLICT(key) DO UPDATE SET …``. Never REPLACE: triggers that feed an index need the old row."""
        table = self.table
        target = ", ".join(quote(k.name) + ("" if table.rowid_alias else f" COLLATE {k.collation}") for k in table.key)
        # Under a collation the key's own bytes may differ: they travel like a value.
        changing = columns if table.key_is_exact else (*table.key_names, *columns)
        action = (
            "UPDATE SET " + ", ".join(f"{quote(c)} = excluded.{quote(c)}" for c in changing) if changing else "NOTHING"
        )
        return f"ON CONFLICT({target}) DO {action}"

    # ---- reading -----------------------------------------------------------------------------------------------

    def entry(self, key: Key) -> Stored | None:
        """The stored versions of a key, without values; None means (0, 0) or nothing."""
        row = execute(self.db, self._select_entry, key).fetchone()
        return None if row is None else Stored(self.decode_entry(row[:6]), row[6])

    def decode_entry(self, row: Row) -> RowState:
        """(l, lr, dead, u, ur, x) of a side table as versions."""
        life_clock, life_run, gone, update_clock, update_run, x = row
        life = self.runs.version(life_clock, life_run)
        update = life if update_clock is None else self.runs.version(update_clock, update_run)
        return RowState(life, not gone, update, unpack_versions(x))

    def visible(self, key: Key) -> dict[str, Value] | None:
        """The values of the row that the table shows under this key (for a table without one: this rowid)."""
        found = select(self.db, self._shown, self._row, key)
        return dict(zip(self.columns, found[0], strict=False)) if found else None

    def present(self, key: Key) -> bool:
        """Whether the table shows a row under this key."""
        return execute(self.db, f"SELECT 1 {self._row}", key).fetchone() is not None

    def hidden(self, key: Key) -> dict[str, Value] | None:
        """The values of the row under this key that waits behind another one."""
        query = f"SELECT row FROM {PREFIX}hidden WHERE name = ? AND key = ?"
        row = self.db.execute(query, (self.table.name, self._hidden_key(key))).fetchone()
        if row is None:
            return None
        return dict(zip(self.columns, unpack_values(row[0])[len(self.table.key) :], strict=False))

    def exact_key(self, key: Key) -> Key:
        """The key with the bytes that the row has here: keys that SQLite finds equal may differ in them."""
        if self.table.key_is_exact:
            return key
        shown = select(self.db, [quote(k.name) for k in self.table.key], self._row, key)
        if shown:
            return shown[0]
        query = f"SELECT row FROM {PREFIX}hidden WHERE name = ? AND key = ?"
        row = self.db.execute(query, (self.table.name, self._hidden_key(key))).fetchone()
        return key if row is None else unpack_values(row[0])[: len(key)]

    def hidden_keys(self) -> list[Key]:
        """The keys of all hidden rows of this table."""
        query = f"SELECT row FROM {PREFIX}hidden WHERE name = ? ORDER BY key"
        width = len(self.table.key)
        return [unpack_values(row[0])[:width] for row in self.db.execute(query, (self.table.name,))]

    def state(self, key: Key) -> tuple[RowState | None, int | None]:
        """Versions and values of a key as they are here, and the local rowid of a row without a key.

        None: not here and not remembered as deleted.
        """
        stored = self.entry(key)
        if stored is not None and not stored.state.alive:
            return stored.state, None
        if self.table.keyless:
            local = stored.local if stored is not None else None
            values = self.visible((local,)) if local is not None else None
        else:
            local, values = None, self.visible(key)
        if values is None and self.may_hide:
            values = self.hidden(key)
        if values is None:
            return None, None
        base = stored.state if stored is not None else RowState(ZERO, alive=True, update=ZERO)
        return RowState(base.life, alive=True, update=base.update, columns=base.columns, values=values), local

    # ---- writing -----------------------------------------------------------------------------------------------

    def put_entry(self, key: Key, state: RowState, local: int | None = None) -> None:
        """Store the versions of a key."""
        execute(self.db, self.put_entry_sql, self.entry_values(key, state, local))

    def entry_values(self, key: Key, state: RowState, local: int | None = None) -> Row:
        """The parameters of ``put_entry_sql``."""
        life, update = state.life, state.update
        moved = state.alive and update != life
        return (
            *((local,) if self.table.keyless else ()),
            *key,
            life.clock,
            self.runs.id_of(self.db, life.run),
            int(not state.alive),
            update.clock if moved else None,
            self.runs.id_of(self.db, update.run) if moved else None,
            pack_versions(state.columns) if state.alive else None,
        )

    def write(self, key: Key, values: Mapping[str, Value], local: int | None = None) -> int | None:
        """Show a row with these values (columns not named keep theirs); returns the local rowid of a row without key.

        Raises apsw.ConstraintError if the table refuses it (UNIQUE, NOT NULL, STRICT).
        """
        columns = tuple(c for c in self.columns if c in values)
        shown = tuple(values[c] for c in columns)
        if self.table.keyless:
            return self._write_keyless(columns, shown, local)
        sql = self._upsert if len(columns) == len(self.columns) else self._upsert_sql(columns)
        execute(self.db, sql, (*key, *shown))
        return None

    def _write_keyless(self, columns: tuple[str, ...], shown: Row, local: int | None) -> int | None:
        if local is None:
            execute(self.db, self._insert_sql(columns), shown)
            return self.db.last_insert_rowid()
        changes = ", ".join(f"{quote(c)} = ?" for c in columns)
        execute(self.db, f"UPDATE {quote(self.table.name)} SET {changes} WHERE rowid = ?", (*shown, local))
        return local

    def erase(self, key: Key) -> None:
        """Take the row out of the table (for a table without a key: the row with this rowid)."""
        execute(self.db, self._delete_row, key)

    def hide(self, key: Key, values: Mapping[str, Value]) -> None:
        """Keep a row's values hidden."""
        self.may_hide = True
        row = pack_values((*key, *(values.get(c) for c in self.columns)))
        query = f"INSERT OR REPLACE INTO {PREFIX}hidden(name, key, row) VALUES (?, ?, ?)"
        self.db.execute(query, (self.table.name, self._hidden_key(key), row))

    def unhide(self, key: Key) -> None:
        """Forget a hidden row."""
        if not self.may_hide:
            return
        query = f"DELETE FROM {PREFIX}hidden WHERE name = ? AND key = ?"
        self.db.execute(query, (self.table.name, self._hidden_key(key)))

    def any_hidden(self) -> bool:
        """Whether any row of this table is hidden."""
        query = f"SELECT 1 FROM {PREFIX}hidden WHERE name = ? LIMIT 1"
        return self.db.execute(query, (self.table.name,)).fetchone() is not None

    def _hidden_key(self, key: Key) -> bytes:
        """Keys equal under the key's collation have one hidden row."""
        return pack_values(self.table.same_key(key))


def has_raw_text(values: Row) -> bool:
    """Whether a value needs the exact way of binding."""
    return any(type(value) is RawText for value in values)
