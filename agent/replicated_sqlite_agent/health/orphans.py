"""Counts rows whose FOREIGN KEY names a row that is not there: merges may leave some, and a person should know.

The count reads the whole tables, so it runs beside everything else, on a connection of its own, and seldom.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw

from replicated_sqlite_agent.database.connection import connect, scalar

PAUSE_LEAST_S = 5.0
PAUSE_FACTOR = 50
"""A count that takes a second is made at most every fifty: it costs 2 % of a processor at most."""


class OrphanCount:
    """``found`` is the newest count; None before the first one and where it cannot be had."""

    def __init__(self, database: Path, changes: Callable[[], int]) -> None:
        """``changes``: a number that grows when rows change."""
        self._database, self._changes = database, changes
        self._db: apsw.Connection | None = None
        self.found: int | None = None

    async def run(self) -> None:
        """Count, and again when rows have changed, until cancelled."""
        while True:
            before, began = self._changes(), time.monotonic()
            try:
                self.found = await asyncio.to_thread(self._count)
            except asyncio.CancelledError:
                self._interrupt()
                raise
            await asyncio.sleep(max(PAUSE_LEAST_S, PAUSE_FACTOR * (time.monotonic() - began)))
            while self._changes() == before:
                await asyncio.sleep(PAUSE_LEAST_S)

    def _interrupt(self) -> None:
        with suppress(apsw.ConnectionClosedError):
            if self._db is not None:
                self._db.interrupt()

    def _count(self) -> int | None:
        try:
            db = self._db = connect(self._database)
        except apsw.Error:
            return None
        try:
            if db.pragma("journal_mode") != "wal":
                return None  # in rollback mode a reader holds up the application's commits
            return int(scalar(db, "SELECT count(*) FROM pragma_foreign_key_check") or 0)
        except apsw.Error:
            return None  # interrupted, or a FOREIGN KEY that SQLite cannot check
        finally:
            db.close()
