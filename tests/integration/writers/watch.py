"""Reads one query again and again, as a reader of a replica does, until its standard input is closed.

The query is a single statement, so each answer is one snapshot. Prints a JSON summary with each different answer (its
first row) in the order of first sight: `{"reads": n, "seen": [[...], ...]}`.
"""

from __future__ import annotations

import argparse
import json
import select
import sqlite3
import sys

from integration.writers.connecting import add_arguments, connect, is_locked

BETWEEN_READS_S = 0.001


def main() -> None:
    """Read until told to stop. The first line on standard output says that the first answer was read."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--sql", required=True)
    given = parser.parse_args()

    connection = connect(given.database, given.busy_timeout, given.pragma)
    reads = 0
    seen: dict[tuple[object, ...], None] = {}
    while True:
        try:
            seen.setdefault(connection.execute(given.sql).fetchone())
            reads += 1
            if reads == 1:
                print("reading", flush=True)
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
        if select.select([sys.stdin], [], [], BETWEEN_READS_S)[0]:
            break
    connection.close()
    json.dump({"reads": reads, "seen": list(seen)}, sys.stdout)


if __name__ == "__main__":
    main()
