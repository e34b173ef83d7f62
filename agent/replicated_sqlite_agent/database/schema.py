"""The user's schema as data, read with pragmas. Nothing here writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import apsw

from replicated_sqlite_agent.changes import Key, Value
from replicated_sqlite_agent.database.connection import scalar
from replicated_sqlite_agent.database.identifiers import PREFIX, quote
from replicated_sqlite_agent.database.sqltext import index_text

_INTEGER_END = float(1 << 63)

BUILTIN_COLLATIONS = frozenset({"BINARY", "NOCASE", "RTRIM"})


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the primary key with the collation in which its index compares."""

    name: str
    collation: str
    mixed: bool = False
    """Whether equal numbers may have different bytes in it (1 and 1.0, 0.0 and -0.0): no affinity forbids it."""

    @property
    def exact(self) -> bool:
        """Whether equal values always have equal bytes."""
        return self.collation == "BINARY" and not self.mixed


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A UNIQUE index besides the key. ``columns`` is None when a term is an expression or the index is partial."""

    name: str
    terms: tuple[tuple[str, str], ...]
    """(SQL of the term, collation)"""
    where: str | None
    columns: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is replicated: its key, its value columns (no generated ones), its further UNIQUE indexes."""

    name: str
    key: tuple[KeyColumn, ...]
    columns: tuple[str, ...]
    rowid_alias: bool
    """The key is an INTEGER PRIMARY KEY, which is the rowid."""
    keyless: bool
    """No primary key: rows are identified by where they were inserted, the rowid is only local."""
    without_rowid: bool
    generated: tuple[str, ...]
    unique: tuple[UniqueIndex, ...]
    digest: bytes
    """Of everything that decides which rows the table can hold: columns, types, defaults, keys, UNIQUE."""

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names of the key columns, ``rowid`` for a table without a primary key."""
        return tuple(column.name for column in self.key)

    @property
    def key_is_exact(self) -> bool:
        """Whether equal keys always have equal bytes (an integer rowid, or every column is exact)."""
        return self.rowid_alias or self.keyless or all(column.exact for column in self.key)

    def same_key(self, key: Key) -> Key:
        """A form of a key that is equal, as a Python value, exactly if SQLite finds the keys equal."""
        if self.key_is_exact:
            return key
        return tuple(_collated(value, column.collation) for value, column in zip(key, self.key, strict=True))


def _collated(value: Value, collation: str) -> Value:
    if isinstance(value, str) and collation == "NOCASE":
        return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in value)
    if isinstance(value, str) and collation == "RTRIM":
        return value.rstrip(" ")
    if isinstance(value, float) and value.is_integer() and abs(value) < _INTEGER_END:
        return int(value)
    return value


def _mixed(declared: str) -> bool:
    """Whether a column declared so can hold equal numbers with different bytes: by SQLite's affinity rules."""
    name = declared.upper()
    if "INT" in name or any(part in name for part in ("CHAR", "CLOB", "TEXT")):
        return False
    return name in ("", "ANY") or any(part in name for part in ("BLOB", "REAL", "FLOA", "DOUB"))


@dataclass(frozen=True, slots=True)
class Schema:
    """What the file holds: tables to replicate, and tables left out with the reason in one sentence."""

    version: int
    """SQLite's schema cookie at the time of reading."""
    tables: dict[str, Table]
    left_out: dict[str, str]
    virtual: frozenset[str]


def read_schema(db: apsw.Connection, selects: Callable[[str], bool] = lambda _: True) -> Schema:
    """Read all tables that ``selects`` takes by their name. Call it inside a transaction."""
    version = int(db.pragma("schema_version"))
    tables: dict[str, Table] = {}
    left_out: dict[str, str] = {}
    virtual: set[str] = set()
    listing = list(db.execute("SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' ORDER BY name"))
    for name, kind, without_rowid in listing:
        if kind == "virtual":
            virtual.add(name)
        if kind != "table" or name.startswith(("sqlite_", PREFIX)):
            continue
        if not selects(name):
            continue
        table = _read_table(db, name, bool(without_rowid))
        if isinstance(table, Table):
            tables[name] = table
        else:
            left_out[name] = table
    return Schema(version, tables, left_out, frozenset(virtual))


def _read_table(db: apsw.Connection, name: str, without_rowid: bool) -> Table | str:
    """The table, or the sentence why it cannot be replicated."""
    info = list(db.execute('SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (name,)))
    indexes = list(db.execute('SELECT name, "unique", origin, partial FROM pragma_index_list(?)', (name,)))
    key_names = [row[0] for row in sorted((r for r in info if r[4]), key=lambda r: r[4])]
    key_index = next((index[0] for index in indexes if index[2] == "pk"), None)
    rowid_alias = not without_rowid and len(key_names) == 1 and key_index is None
    collations = dict(_index_terms(db, key_index)) if key_index is not None else {}
    foreign = {c for index in indexes if index[1] for _, c in _index_terms(db, index[0])} - BUILTIN_COLLATIONS
    if foreign:
        return f"table {name} uses the collation {min(foreign)}, which only the application has"
    names = {row[0].lower() for row in info}
    keyless = not key_names
    if keyless and names & {"rowid", "_rowid_", "oid"}:
        return f"table {name} has no primary key and a column named like the rowid; give it a primary key"
    declared = {row[0]: row[1] for row in info}
    key = tuple(KeyColumn(c, collations.get(c) or "BINARY", _mixed(declared[c])) for c in key_names)
    columns = tuple(row[0] for row in info if not row[4] and not row[5])
    generated = tuple(row[0] for row in info if row[5])
    unique = tuple(_unique_index(db, *index) for index in indexes if index[1] and index[2] != "pk")
    shape = [
        [list(row) for row in sorted(info)],
        [[k.name, k.collation] for k in key],
        sorted([list(map(list, u.terms)), u.where or ""] for u in unique),
        without_rowid,
    ]
    digest = hashlib.blake2b(json.dumps(shape, separators=(",", ":")).encode(), digest_size=8).digest()
    if keyless:
        key = (KeyColumn("rowid", "BINARY"),)
    return Table(name, key, columns, rowid_alias, keyless, without_rowid, generated, unique, digest)


def _index_terms(db: apsw.Connection, index: str) -> list[tuple[str | None, str]]:
    query = "SELECT name, coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno"
    return [(row[0], str(row[1]).upper()) for row in db.execute(query, (index,))]


def _unique_index(db: apsw.Connection, name: str, _unique: int, origin: str, partial: int) -> UniqueIndex:
    terms = _index_terms(db, name)
    if origin == "u":
        columns = tuple(str(column) for column, _ in terms)
        return UniqueIndex(
            name, tuple((quote(c), coll) for c, (_, coll) in zip(columns, terms, strict=True)), None, columns
        )
    sql = str(scalar(db, "SELECT sql FROM main.sqlite_schema WHERE type = 'index' AND name = ?", (name,)))
    text = index_text(sql)
    plain = not partial and all(column is not None for column, _ in terms)
    return UniqueIndex(
        name,
        tuple((quote(c) if c is not None else t, coll) for (c, coll), t in zip(terms, text.terms, strict=True)),
        text.where,
        tuple(str(column) for column, _ in terms) if plain else None,
    )
