"""Snapshots of a replicated file without an agent: as an agent takes them, into any store."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.replica.state import Replica
from replicated_sqlite_agent.settings import Tables
from replicated_sqlite_agent.snapshots.documents import Manifest
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.taking import Source, take_snapshot

SCHEMA = """
    PRAGMA journal_mode = WAL;
    CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT, data BLOB);
    CREATE TABLE tags (name TEXT COLLATE NOCASE PRIMARY KEY, weight) WITHOUT ROWID;
    CREATE TABLE lines (a, b);
    CREATE VIEW both AS SELECT id, name FROM notes, tags;
    INSERT INTO tags VALUES ('a', 1), ('B', 1.0), ('c', x'00ff'), ('d', NULL);
    INSERT INTO lines VALUES (1, 'x'), (1, 'x'), (NULL, CAST(x'ff00' AS TEXT));
"""


def make_database(path: Path, rows: int = 200, row_bytes: int = 300) -> None:
    """A file of an application, with an agent's tables as after its first start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA)
        db.executemany(
            "INSERT INTO notes(text, data) VALUES (?, randomblob(?))", ((f"row {n}", row_bytes) for n in range(rows))
        )
        db.commit()
    replica = Replica(path, _options(), Counters())
    replica.start_run(7, "notes", "a")
    replica.close()


def _options() -> CaptureOptions:
    return CaptureOptions("a", Tables(), False)


async def take(
    repository: Repository, database: Path, recipients: Sequence[bytes] = (), counters: Counters | None = None
) -> Manifest:
    """One snapshot."""

    async def published(_: int) -> None:
        return None

    folder = database.with_name(database.name + ".rsqlite")
    folder.mkdir(exist_ok=True)
    source = Source(
        database, folder, _options(), counters or Counters(), recipients, lambda: time.time_ns() // 1_000_000, published
    )
    return await take_snapshot(source, repository)
