"""A reader of a replica: notes when each new row of the narrow table becomes visible to another process.

inotify on the database's folder wakes it; after each event it asks PRAGMA data_version every 0.1 ms, because SQLite
writes a commit to the file before it makes it visible: for 3 ms, or until 0.3 ms after it saw one. So it costs little.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import time
from pathlib import Path

from inotify_simple import INotify, flags

from benchmarks.processes import ready

ASK_EVERY_S, ASK_FOR_S, ASK_AFTER_S = 0.0001, 0.003, 0.0003
SILENT_MS = 500
"""Look at least this often, whatever inotify says."""


def main() -> None:
    """Watch until the row with the last id is visible; print {"seen": [ns for each id]}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("first", type=int, help="id of the first row to come")
    parser.add_argument("count", type=int)
    given = parser.parse_args()

    connection = sqlite3.connect(given.database, timeout=10, isolation_level=None)
    events = INotify()
    events.add_watch(str(given.database.parent), flags.MODIFY)
    visible = _Visible(connection, given.first)
    ready()
    while len(visible.seen) < given.count:
        events.read(timeout=SILENT_MS)
        ends = time.monotonic() + ASK_FOR_S
        while time.monotonic() < ends:
            if visible.look():
                ends = time.monotonic() + ASK_AFTER_S
            time.sleep(ASK_EVERY_S)
    json.dump({"seen": visible.seen[: given.count]}, sys.stdout)


class _Visible:
    """Which rows have been seen, and when."""

    def __init__(self, connection: sqlite3.Connection, first: int) -> None:
        self._connection, self._next = connection, first
        self._version = -1
        self.seen: list[int] = []

    def look(self) -> bool:
        """Note the rows that are new; whether there are any. They are inserted in order of their ids, by one writer."""
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return False
        self._version = version
        newest = self._connection.execute("SELECT coalesce(max(id), 0) FROM narrow").fetchone()[0]
        now = time.monotonic_ns()
        found: bool = newest >= self._next
        while self._next <= newest:
            self.seen.append(now)
            self._next += 1
        return found


if __name__ == "__main__":
    main()
