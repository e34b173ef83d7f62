"""Writes rows of its own and updates shared rows; notes in a book what was acknowledged.

The tables are `notes(id, writer, n, value)` and `shared(id, value)`. Each transaction inserts one note; every third
also updates a shared row, every tenth also deletes one of the writer's earlier notes. A transaction that meets a lock
is begun again and is not in the book until it committed. Prints a JSON summary: `{"committed": n, "locked": m}`.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from integration.writers.acknowledged import Book, Entry
from integration.writers.connecting import add_arguments, connect, is_locked


@dataclass
class Plan:
    """What one writer is going to do: a function of its name and seed alone."""

    writer: str
    shared: int
    deletes: bool
    random: random.Random
    own: list[str] = field(default_factory=list)

    def transaction(self, n: int) -> list[Entry]:
        """The changes of transaction `n`, in order."""
        key = f"{self.writer}-{n}"
        entries = [Entry("insert", key, f"{key}-{self.random.getrandbits(64):016x}")]
        if self.shared and n % 3 == 0:
            entries.append(Entry("update", str(self.random.randrange(self.shared)), f"{self.writer}:{n}"))
        if self.deletes and n % 10 == 9:
            entries.append(Entry("delete", self.own.pop(self.random.randrange(len(self.own))), ""))
        self.own.append(key)
        return entries


def perform(connection: sqlite3.Connection, writer: str, n: int, entries: list[Entry]) -> None:
    """Carry out one transaction; raises `sqlite3.OperationalError` if a lock is in the way."""
    connection.execute("BEGIN IMMEDIATE")
    for entry in entries:
        match entry.kind:
            case "insert":
                connection.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", (entry.key, writer, n, entry.value))
            case "update":
                connection.execute("UPDATE shared SET value = ? WHERE id = ?", (entry.value, int(entry.key)))
            case _:
                connection.execute("DELETE FROM notes WHERE id = ?", (entry.key,))
    connection.execute("COMMIT")


def until_committed(connection: sqlite3.Connection, writer: str, n: int, entries: list[Entry]) -> int:
    """Perform a transaction until it commits; the number of locks that were met."""
    locked = 0
    while True:
        try:
            perform(connection, writer, n, entries)
            return locked
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            locked += 1
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            time.sleep(0.001)  # with busy_timeout=0 the application chooses how often it asks


def main() -> None:
    """Run the writer to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--book", type=Path, required=True)
    parser.add_argument("--writer", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--shared", type=int, default=0, help="number of shared rows, ids 0 .. n-1")
    parser.add_argument("--deletes", action="store_true")
    parser.add_argument("--rate", type=float, default=0.0, help="transactions per second; 0: as fast as they go")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    plan = Plan(given.writer, given.shared, given.deletes, random.Random(f"{given.seed} {given.writer}"))
    book = Book(given.book)
    connection = connect(given.database, given.busy_timeout, given.pragma)
    locked = 0
    begun = time.monotonic()
    for n in range(given.rows):
        if given.rate:
            time.sleep(max(0.0, begun + n / given.rate - time.monotonic()))
        entries = plan.transaction(n)
        locked += until_committed(connection, given.writer, n, entries)
        book.append(entries)
    connection.close()
    book.close()
    json.dump({"committed": given.rows, "locked": locked}, sys.stdout)


if __name__ == "__main__":
    main()
