"""The fold by the thousand: the same versions as `merge.fold` gives, by one statement for many log rows.

Within one millisecond of wall time clocks count up by one, so they are the log's own numbers plus a constant. And where
a table's log rows are only inserts, updates of whole rows and deletes, folding them one after the other by an UPSERT
ends in what `fold_key` makes of all mentions of a key at once. A test holds both ways against each other.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import apsw

from replicated_sqlite_agent.capture.triggers import KIND_FACTOR, LOG
from replicated_sqlite_agent.changes import Key, Kind, Mention, advance
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.exact import select
from replicated_sqlite_agent.database.own_tables import Progress, key_columns
from replicated_sqlite_agent.replica.rows import Rows

ROWS_MIN = 65
"""Fewer log rows are folded faster one by one."""

_STEP_ROWS_MIN = 8
"""With fewer rows of one wall time on average the statements cost more than they spare."""

_SEQUENTIAL = (Kind.INSERT, Kind.UPDATE, Kind.DELETE)


class Step(NamedTuple):
    """Log rows ``first`` to ``last`` of one wall time: each one's clock is its number plus ``ahead``."""

    first: int
    last: int
    ahead: int


def survey(
    db: apsw.Connection, low: int, high: int, progress: Progress
) -> tuple[list[Step] | None, dict[int, set[Kind]]]:
    """The log rows above ``low`` up to ``high``: their clocks, the same as `stamp` gives, and what they say.

    ``low`` is where ``progress`` has folded to. No clocks if SQL would not pay.
    """
    query = (
        f"SELECT ts, top, min(seq), max(seq), count(*) FROM {LOG} WHERE seq > ? AND seq <= ? "
        "GROUP BY ts, top ORDER BY min(seq)"
    )
    spans: list[tuple[int, int, int, int]] = []
    said: dict[int, set[Kind]] = {}
    for ts, top, first, last, count in all_rows(db, query, (low, high)):
        number, kind = divmod(top, KIND_FACTOR)
        said.setdefault(number, set()).add(Kind(kind))
        if spans and spans[-1][0] == ts:
            _, begin, end, sofar = spans.pop()
            spans.append((ts, begin, max(end, last), sofar + count))
        else:
            spans.append((ts, first, last, count))
    return _steps(spans, progress), said


def _steps(spans: list[tuple[int, int, int, int]], progress: Progress) -> list[Step] | None:
    """(wall time, first and last log row, how many) -> clocks."""
    found: list[Step] = []
    clock, before, total = progress.clock, progress.folded_seq, 0
    for ts, first, last, count in spans:
        if first <= before or last - first + 1 != count:
            return None  # rows were taken out of the log, or the wall clock went back and forth
        clock = advance(clock, ts + progress.clock_offset)
        found.append(Step(first, last, clock - first))
        clock, before, total = clock + count - 1, last, total + count
    return found if total >= _STEP_ROWS_MIN * len(found) else None


def sequential(rows: Rows, said: set[Kind], low: int, high: int) -> bool:
    """Whether `fold` is right for what this stretch of the log says of a table."""
    table = rows.table
    if table.keyless or not table.key_is_exact or not said <= set(_SEQUENTIAL):
        return False
    if rows.captured.by_column and Kind.UPDATE in said:
        return False
    if table.unique and rows.any_hidden():
        return False
    if table.rowid_alias:
        return True
    null = " OR ".join(f"k{i + 1} IS NULL" for i in range(len(table.key)))
    return scalar(rows.db, f"SELECT 1 FROM {LOG} WHERE {_of(rows)} AND ({null}) LIMIT 1", (low + 1, high)) is None


def _of(rows: Rows) -> str:
    """The log rows ``?1`` to ``?2`` of a table."""
    top = rows.captured.number * KIND_FACTOR
    return f"seq BETWEEN ?1 AND ?2 AND top BETWEEN {top} AND {top + KIND_FACTOR - 1}"


def fold(rows: Rows, into: str, found: list[Step], run_id: int) -> None:
    """Write the versions of a stretch of the log into ``into``, which has the columns of the side table."""
    top, keys = rows.captured.number * KIND_FACTOR, key_columns(len(rows.table.key))
    updated, gone = f"top = {top + Kind.UPDATE}", f"top = {top + Kind.DELETE}"
    rows.db.executemany(
        f"INSERT INTO {into}({keys}, l, lr, dead, u, ur, x) SELECT {keys}, iif({updated}, 0, seq + ?3), "
        f"iif({updated}, 0, {run_id}), {gone}, iif({updated}, seq + ?3, NULL), iif({updated}, {run_id}, NULL), NULL "
        f"FROM {LOG} WHERE {_of(rows)} ORDER BY seq ON CONFLICT({keys}) DO UPDATE SET "
        # A delete ends the life; an update sets the row; an insert begins a life or, where one is, sets the row.
        "l = iif(excluded.u IS NULL AND (excluded.dead OR dead), excluded.l, l), "
        "lr = iif(excluded.u IS NULL AND (excluded.dead OR dead), excluded.lr, lr), "
        "u = CASE WHEN excluded.dead THEN NULL WHEN excluded.u IS NOT NULL THEN excluded.u "
        "WHEN dead THEN NULL ELSE excluded.l END, "
        "ur = CASE WHEN excluded.dead THEN NULL WHEN excluded.u IS NOT NULL THEN excluded.ur "
        "WHEN dead THEN NULL ELSE excluded.lr END, "
        "dead = excluded.dead, x = NULL WHERE excluded.u IS NULL OR NOT dead",
        [(step.first, step.last, step.ahead) for step in found],
    )


def mentions(rows: Rows, low: int, high: int, found: list[Step]) -> dict[Key, list[Mention]]:
    """What a stretch of the log says of one table, one by one."""
    width = len(rows.table.key)
    columns = ["seq", "top", "mask", *(f"k{i + 1}" for i in range(width))]
    lasts = [step.last for step in found]
    by_key: dict[Key, list[Mention]] = {}
    for row in select(rows.db, columns, f"FROM {LOG} WHERE {_of(rows)} ORDER BY seq", (low + 1, high)):
        step = found[bisect_left(lasts, row[0])]
        by_key.setdefault(row[3:], []).append(Mention(Kind(row[1] % KIND_FACTOR), row[2], row[0] + step.ahead))
    return by_key
