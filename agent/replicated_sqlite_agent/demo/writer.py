"""An application as any other: writes to one database with plain sqlite3 until its standard input is closed.

Run as a script: `writer.py <database> <author> <transactions per second>`. It inserts, updates and deletes notes of its
own, and updates, deletes and inserts again the few rows of a board on which all authors write. Says on standard output,
a few times per second and at the end, how many rows it has written.
"""

from __future__ import annotations

import random
import secrets
import select
import sqlite3
import sys
import time

OWN_ROWS_MAX = 500
"""Then notes are deleted before new ones are made, so that the demo can run for days."""

BOARD_ROWS = 12

REPORT_EVERY_S = 0.25

BUSY_TIMEOUT_S = 30.0
"""How long SQLite waits for the lock, as any application beside another process should let it."""

WORDS = [
    "river",
    "stone",
    "cloud",
    "paper",
    "lamp",
    "garden",
    "window",
    "bread",
    "winter",
    "train",
    "letter",
    "music",
    "bridge",
    "apple",
    "night",
    "harbour",
]


class Author:
    """Writes in the name of one author, a transaction at a time."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._chance = random.Random()
        self._mine = [row[0] for row in connection.execute("SELECT id FROM notes WHERE author = ?", (name,))]
        self.written = 0

    def write(self) -> None:
        """One transaction that changes one row; a row that somebody else deleted meanwhile stays deleted."""
        sql, parameters = self._next()
        self._connection.execute("BEGIN IMMEDIATE")
        self.written += self._connection.execute(sql, parameters).rowcount
        self._connection.execute("COMMIT")

    def _next(self) -> tuple[str, tuple[object, ...]]:
        choice = self._chance.random()
        if choice < 0.25:
            row = self._chance.randrange(BOARD_ROWS)
            if choice < 0.03:
                return "DELETE FROM board WHERE id = ?", (row,)
            return (
                "INSERT INTO board(id, author, text) VALUES (?, ?, ?) "
                "ON CONFLICT(id) DO UPDATE SET author = excluded.author, text = excluded.text",
                (row, self._name, self._text()),
            )
        if self._mine and choice < 0.55:
            return "UPDATE notes SET text = ? WHERE id = ?", (self._text(), self._chance.choice(self._mine))
        if self._mine and (choice < 0.65 or len(self._mine) >= OWN_ROWS_MAX):
            return "DELETE FROM notes WHERE id = ?", (self._mine.pop(self._chance.randrange(len(self._mine))),)
        self._mine.append(f"{self._name}-{secrets.token_hex(6)}")
        return "INSERT INTO notes(id, author, text) VALUES (?, ?, ?)", (self._mine[-1], self._name, self._text())

    def _text(self) -> str:
        return " ".join(self._chance.choices(WORDS, k=4))


def main(database: str, name: str, rate: float) -> None:
    """Write at this rate until standard input is closed."""
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    author = Author(connection, name)
    due = report = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        author.write()
        now = time.monotonic()
        # A writer that was held up goes on at its rate; it does not catch up in a burst.
        due = max(due + 1 / rate, now)
        if now >= report:
            print(author.written, flush=True)
            report = now + REPORT_EVERY_S
    connection.close()
    print(author.written, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
