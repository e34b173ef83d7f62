"""What capture costs an application: the same writes on a table with capture and on one without, in turns."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.figures import Figure, typical
from benchmarks.rig import NARROW, Scale
from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.replica.state import Replica

ROWS_BEFORE = 100_000
TURNS = 10
"""Of each of the two, in each round: a disturbance of the machine then meets both."""
SINGLE, BULK = 1_000, 100
"""Transactions of a turn: single rows, and of 100 rows."""
FSYNCS = 100
"""Transactions of a turn where each waits for the disk."""
BULK_ROWS = 100
GOALS = {
    ("INSERT", "NORMAL"): 1.6,
    ("UPDATE", "NORMAL"): 1.9,
    ("DELETE", "NORMAL"): 1.9,
    ("INSERT", "FULL"): 1.1,
    ("UPDATE", "FULL"): 1.1,
    ("DELETE", "FULL"): 1.1,
    ("100 INSERTs", "NORMAL"): 2.0,
}


def measure(folder: Path, scale: Scale) -> list[Figure]:
    """The ratios for each kind of transaction."""
    files = {captured: prepare(folder / f"capture-{captured}.db", captured) for captured in (False, True)}
    figures = []
    for (kind, level), goal in GOALS.items():
        ratios, micros = [], []
        for _ in range(scale.rounds):
            taken = {False: 0.0, True: 0.0}
            for _ in range(TURNS):
                for captured in random.sample([False, True], 2):
                    with closing(application(files[captured], level)) as connection:
                        taken[captured] += _turn(connection, kind, _transactions(kind, level, scale)) / TURNS
            ratios.append(taken[True] / taken[False])
            micros.append(taken[True] * 1e6)
        detail = f"{typical(micros):,.0f} µs with capture; rounds {min(ratios):.2f} to {max(ratios):.2f}"
        figures.append(Figure(f"{kind}, synchronous={level}", typical(ratios), goal=goal, detail=detail))
    return figures


def prepare(path: Path, captured: bool) -> Path:
    """A file with rows in the narrow table, with capture or without."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(NARROW)
        connection.execute("BEGIN")
        rows = ((number, number % 1000, f"row {number}") for number in range(ROWS_BEFORE))
        connection.executemany("INSERT INTO narrow VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
    if captured:
        replica = Replica(path, CaptureOptions("bench"), Counters())
        replica.start_run(1, "bench", "bench")
        replica.close()
    return path


def application(path: Path, level: str) -> sqlite3.Connection:
    """A connection as an application has it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA synchronous = {level}")
    return connection


def _transactions(kind: str, level: str, scale: Scale) -> int:
    full = FSYNCS if level == "FULL" else BULK if kind == "100 INSERTs" else SINGLE
    return max(20, round(full * scale.factor))


def _turn(connection: sqlite3.Connection, kind: str, transactions: int) -> float:
    """Seconds per transaction. What is needed for it is made outside the time."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    newest = connection.execute("SELECT max(id) FROM narrow").fetchone()[0]
    if kind == "100 INSERTs":
        blocks = [list(_rows(newest + 1 + n * BULK_ROWS, BULK_ROWS)) for n in range(transactions)]
        began = time.perf_counter()
        for block in blocks:
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO narrow VALUES (?, ?, ?)", block)
            connection.execute("COMMIT")
        return (time.perf_counter() - began) / transactions
    sql, parameters = _statement(connection, kind, newest, transactions)
    began = time.perf_counter()
    for values in parameters:
        connection.execute(sql, values)
    return (time.perf_counter() - began) / transactions


def _statement(
    connection: sqlite3.Connection, kind: str, newest: int, transactions: int
) -> tuple[str, list[tuple[object, ...]]]:
    if kind == "INSERT":
        return "INSERT INTO narrow VALUES (?, ?, ?)", list(_rows(newest + 1, transactions))
    ids = random.sample([row[0] for row in connection.execute("SELECT id FROM narrow")], transactions)
    if kind == "UPDATE":
        return "UPDATE narrow SET a = a + ? WHERE id = ?", [(1, number) for number in ids]
    return "DELETE FROM narrow WHERE id = ?", [(number,) for number in ids]


def _rows(first: int, count: int) -> Iterator[tuple[object, ...]]:
    return ((number, number % 1000, f"row {number}") for number in range(first, first + count))
