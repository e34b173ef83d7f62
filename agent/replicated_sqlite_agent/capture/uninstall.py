"""Takes every trace of the agent out of a file."""

from __future__ import annotations

from pathlib import Path

from replicated_sqlite_agent.database.connection import open_database, write_transaction
from replicated_sqlite_agent.database.lock import FileLock
from replicated_sqlite_agent.database.own_tables import drop_own_objects


def uninstall(path: Path) -> int:
    """Drop all triggers and tables of the agent; returns how many there were. The user's rows are not touched.

    Raises HeldByAnotherError while an agent runs on the file, FileUnusableError if it is no database.
    """
    with FileLock(path):
        db = open_database(path)
        try:
            with write_transaction(db):
                removed = drop_own_objects(db)
        finally:
            db.close()
    return removed
