"""An application: inserts rows into the narrow table with the standard library, paced or as fast as it can."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import time
from pathlib import Path

from benchmarks.processes import ready

BUSY_TIMEOUT_S = 30.0


def main() -> None:
    """Write and print {"ids": first id, "committed": [ns after each commit], "began": ns, "ended": ns}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("first", type=int, help="id of the first row")
    parser.add_argument("transactions", type=int)
    parser.add_argument("--rows", type=int, default=1, help="per transaction")
    parser.add_argument("--rate", type=float, help="transactions per second; as fast as possible if left out")
    given = parser.parse_args()

    connection = sqlite3.connect(given.database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    ready()
    committed: list[int] = []
    began = time.monotonic_ns()
    for number in range(given.transactions):
        if given.rate:
            _sleep_until(began + round(number * 1e9 / given.rate))
        first = given.first + number * given.rows
        _transaction(connection, first, given.rows)
        committed.append(time.monotonic_ns())
    connection.close()
    # Single rows need each time, bulk only the ends.
    times = committed if given.rows == 1 else []
    json.dump({"committed": times, "began": began, "ended": committed[-1]}, sys.stdout)


def _transaction(connection: sqlite3.Connection, first: int, rows: int) -> None:
    values = [(number, number % 1000, f"row {number}") for number in range(first, first + rows)]
    if rows == 1:
        connection.execute("INSERT INTO narrow VALUES (?, ?, ?)", values[0])
        return
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO narrow VALUES (?, ?, ?)", values)
    connection.execute("COMMIT")


def _sleep_until(moment_ns: int) -> None:
    left = (moment_ns - time.monotonic_ns()) / 1e9
    if left > 0:
        time.sleep(left)


if __name__ == "__main__":
    main()
