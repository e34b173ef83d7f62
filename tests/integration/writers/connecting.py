"""How the helper programs open a database: as any Python application does, with the standard library alone."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every helper program shares."""
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--busy-timeout", type=float, default=10.0, help="seconds that SQLite waits for a lock")
    parser.add_argument("--pragma", action="append", default=[], help="executed after opening, e.g. foreign_keys=ON")


def connect(database: Path, busy_timeout: float, pragmas: Sequence[str]) -> sqlite3.Connection:
    """A connection in autocommit mode, so that each BEGIN and COMMIT is one that the program wrote."""
    connection = sqlite3.connect(database, timeout=busy_timeout, isolation_level=None)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def is_locked(error: sqlite3.OperationalError) -> bool:
    """Whether SQLite refused because another connection holds a lock: the one error an application has to expect."""
    return error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
