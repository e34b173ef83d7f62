"""What a database file holds, as digests to compare: of each table's rows, and of the schema."""

from __future__ import annotations

import hashlib

import apsw
import apsw.sqlite_extra
import msgspec

from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, literal, quote
from replicated_sqlite_agent.snapshots.documents import TableFacts


def table_facts(db: apsw.Connection) -> dict[str, TableFacts]:
    """Rows and digest of each of the application's tables.

    The digest takes each value with its storage class, bit for bit, in the order of the key; it is computed by
    SQLite's own sha3_query, so that the interpreter goes on meanwhile.
    """
    apsw.sqlite_extra.load(db, "shathree")
    listing = all_rows(db, "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name")
    names = [name for (name,) in listing if not name.startswith(("sqlite_", PREFIX))]
    return {name: _facts(db, name) for name in names}


def _facts(db: apsw.Connection, name: str) -> TableFacts:
    info = all_rows(db, "SELECT name, pk, hidden FROM pragma_table_xinfo(?)", (name,))
    columns = [column for column, _, hidden in info if not hidden]
    key = [column for column, _, _ in sorted((row for row in info if row[1]), key=lambda row: row[1])]
    order = ", ".join(f"{quote(column)} COLLATE BINARY" for column in key or columns)
    query = f"SELECT {listed(columns)} FROM {quote(name)} ORDER BY {order}"
    rows = int(scalar(db, f"SELECT count(*) FROM {quote(name)}"))
    try:
        return TableFacts(rows, str(scalar(db, f"SELECT lower(hex(sha3_query({literal(query)}, 256)))")))
    except apsw.SQLError:  # a collation or function that only the application has
        return TableFacts(rows, None)


def schema_digest(db: apsw.Connection) -> str:
    """SHA-256 of the text of everything in the schema that is the application's."""
    own = len(PREFIX)
    rows = all_rows(
        db,
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND substr(name, 1, ?) <> ? "
        "AND substr(tbl_name, 1, ?) <> ? ORDER BY type, name",
        (own, PREFIX, own, PREFIX),
    )
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()
