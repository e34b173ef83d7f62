"""What the databases hold, read by plain sqlite3 as any application would, and compared bit for bit."""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import combinations
from pathlib import Path
from typing import Final, NamedTuple

BUSY_TIMEOUT_S: Final = 30.0

_TABLES: Final = """
    SELECT name FROM pragma_table_list
    WHERE schema = 'main' AND type = 'table' AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__rsqlite_*'
    ORDER BY name
"""


class Table(NamedTuple):
    """All rows of one table. Order and hidden row numbers do not count."""

    columns: tuple[str, ...]
    rows: Counter[tuple[object, ...]]


Contents = Mapping[str, Table]
"""The application's tables of one file by name; the agent's own are left out, and virtual ones."""


def read_all(paths: Sequence[Path]) -> list[Contents]:
    """The contents of all these files, of nearly the same moment. Raises sqlite3.Error."""
    with ExitStack() as opened:
        connections = [opened.enter_context(closing(_connect(path))) for path in paths]
        for connection in connections:
            # The first read fixes what this connection sees; the slow reading comes after all have been fixed.
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return [_read(connection) for connection in connections]


def row_count(contents: Contents) -> int:
    """Rows in all tables."""
    return sum(table.rows.total() for table in contents.values())


def differing_rows(all_contents: Sequence[Contents]) -> int:
    """The largest number of rows that one of them has and another has not; 0 if all are equal."""
    return max((_differing(one, other) for one, other in combinations(all_contents, 2)), default=0)


def describe_differences(named: Mapping[str, Contents]) -> list[str]:
    """One phrase for each table and pair of files that differ; empty if all are equal."""
    return [
        phrase
        for (one, here), (other, there) in combinations(named.items(), 2)
        for table in sorted(here.keys() | there.keys())
        if (phrase := _describe(table, one, here.get(table), other, there.get(table)))
    ]


def _describe(name: str, one: str, here: Table | None, other: str, there: Table | None) -> str:
    if here is None:
        return f"table {name} is on {other} but not on {one}"
    if there is None:
        return f"table {name} is on {one} but not on {other}"
    if here.columns != there.columns:
        return f"table {name} has other columns on {one} than on {other}"
    rows = _differing_in(here, there)
    return f"table {name} differs in {rows} rows between {one} and {other}" if rows else ""


def _differing(one: Contents, other: Contents) -> int:
    return sum(_differing_in(one.get(name), other.get(name)) for name in one.keys() | other.keys())


def _differing_in(one: Table | None, other: Table | None) -> int:
    if one == other:
        return 0
    if one is None or other is None or one.columns != other.columns:
        return max(1, *(table.rows.total() for table in (one, other) if table is not None))
    return max((one.rows - other.rows).total(), (other.rows - one.rows).total())


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    # TEXT as a tuple of its bytes: so it is no BLOB, and need not be valid UTF-8.
    connection.text_factory = lambda data: (data,)
    return connection


def _read(connection: sqlite3.Connection) -> Contents:
    names = [name.decode() for ((name,),) in connection.execute(_TABLES).fetchall()]
    return {name: _table(connection, name) for name in names}


def _table(connection: sqlite3.Connection, name: str) -> Table:
    found = connection.execute(f'SELECT * FROM "{name.replace(chr(34), chr(34) * 2)}"')
    rows = Counter(tuple(map(_exact, row)) for row in found)
    return Table(tuple(column[0] for column in found.description), rows)


def _exact(value: object) -> object:
    """A value that equals another only if storage class and bits are the same: 1 is not 1.0, -0.0 is not 0.0."""
    return ("real", struct.pack(">d", value)) if isinstance(value, float) else value
