"""Repeats a few SQL statements as one transaction each time; `:i` stands for the number of the repetition.

With `--plain` the statements run outside a transaction, as VACUUM and checkpoints need it. A repetition that meets a
lock is tried again. Prints a JSON summary: `{"done": n, "locked": m}`.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import time
from collections.abc import Sequence

from integration.writers.connecting import add_arguments, connect, is_locked


def once(connection: sqlite3.Connection, statements: Sequence[str], i: int, plain: bool) -> None:
    """One repetition; raises `sqlite3.OperationalError` if a lock is in the way."""
    if not plain:
        connection.execute("BEGIN IMMEDIATE")
    for statement in statements:
        connection.execute(statement, {"i": i} if ":i" in statement else {}).fetchall()
    if not plain:
        connection.execute("COMMIT")


def main() -> None:
    """Run all repetitions."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--sql", action="append", required=True)
    parser.add_argument("--times", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="repetitions per second; 0: as fast as they go")
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()

    connection = connect(given.database, given.busy_timeout, given.pragma)
    locked = i = 0
    begun = time.monotonic()
    while i < given.times:
        if given.rate:
            time.sleep(max(0.0, begun + i / given.rate - time.monotonic()))
        try:
            once(connection, given.sql, i, given.plain)
            i += 1
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            locked += 1
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            time.sleep(0.001)
    connection.close()
    json.dump({"done": i, "locked": locked}, sys.stdout)


if __name__ == "__main__":
    main()
