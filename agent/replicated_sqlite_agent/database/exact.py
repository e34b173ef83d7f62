"""Values in and out of SQLite bit by bit, TEXT with invalid UTF-8 included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from replicated_sqlite_agent.changes import RawText, Value
from replicated_sqlite_agent.database.sqltext import tokens

Row = tuple[Any, ...]


def execute(db: apsw.Connection, sql: str, values: Sequence[Value]) -> apsw.Cursor:
    """Run a statement with ``?`` parameters, any of which may be `RawText`."""
    for value in values:
        if type(value) is RawText:
            return db.execute(_cast(sql, values), tuple(v.data if isinstance(v, RawText) else v for v in values))
    return db.execute(sql, values)


def _cast(sql: str, values: Sequence[Value]) -> str:
    """The statement with each ``?`` that stands for a RawText as CAST(? AS TEXT), which keeps every byte."""
    marks = [token for token in tokens(sql) if token.text == "?"]
    parts, end = [], 0
    for mark, value in zip(marks, values, strict=True):
        parts += [sql[end : mark.start], "CAST(? AS TEXT)" if isinstance(value, RawText) else "?"]
        end = mark.end
    return "".join([*parts, sql[end:]])


def select(db: apsw.Connection, columns: Iterable[str], rest: str, values: Sequence[Value] = ()) -> list[Row]:
    """``SELECT columns rest``; TEXT that is not UTF-8 comes as `RawText`. ``columns`` are SQL expressions."""
    expressions = list(columns)
    try:
        return execute(db, f"SELECT {', '.join(expressions)} {rest}", values).fetchall()
    except UnicodeDecodeError:
        return _select_bytes(db, expressions, rest, values)


def _select_bytes(db: apsw.Connection, expressions: list[str], rest: str, values: Sequence[Value]) -> list[Row]:
    """The same with each TEXT read as bytes: twice as slow, needed only where a value is not valid UTF-8."""
    pairs = [f"typeof({e}), CASE typeof({e}) WHEN 'text' THEN CAST({e} AS BLOB) ELSE {e} END" for e in expressions]
    rows = execute(db, f"SELECT {', '.join(pairs)} {rest}", values).fetchall()
    return [tuple(_value(row[i], row[i + 1]) for i in range(0, len(row), 2)) for row in rows]


def _value(kind: Value, value: Value) -> Value:
    if kind != "text" or not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return RawText(value)
