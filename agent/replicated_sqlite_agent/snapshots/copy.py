"""Takes and reads snapshot files. Blocking; runs on a thread of its own with its own connections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apsw

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import all_rows, connect, write_transaction
from replicated_sqlite_agent.database.identifiers import PREFIX
from replicated_sqlite_agent.database.own_tables import Runs, read_progress, write_progress
from replicated_sqlite_agent.replica.state import Replica
from replicated_sqlite_agent.snapshots.documents import SnapshotDamagedError


def take(source: Path, target: Path, options: CaptureOptions) -> Replica:
    """Copy a living database to ``target`` and fold the copy; the caller closes the returned view of it.

    The application goes on writing meanwhile. The versions that the fold gives in the copy are those that the living
    file will give: a function of what is stored.
    """
    target.unlink(missing_ok=True)
    live = connect(source)
    copy = apsw.Connection(str(target))
    try:
        with copy.backup("main", live, "main") as backup:
            # One step: a copy in several starts over at each commit and would never end under writes.
            backup.step(-1)
    finally:
        copy.close()
        live.close()
    return Replica.of_copy(target, options, Counters())


def open_copy(path: Path) -> apsw.Connection:
    """A connection to a copy, which nobody else uses."""
    return connect(path)


def seal(target: Path) -> None:
    """Put everything of the copy into its one file and check it. Raises SnapshotDamagedError."""
    db = connect(target)
    try:
        all_rows(db, "PRAGMA wal_checkpoint(TRUNCATE)")
        check(db, target)
    finally:
        db.close()


def check(db: apsw.Connection, path: Path) -> None:
    """``integrity_check``; CHECK constraints are left out, merged rows may break them."""
    db.pragma("ignore_check_constraints", True)
    try:
        result = all_rows(db, "PRAGMA integrity_check(3)")
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise SnapshotDamagedError(f"the copy at {path} is no sound database: {error}") from error
    if result != [("ok",)]:
        raise SnapshotDamagedError(f"the copy at {path} does not pass SQLite's integrity check: {result[0][0]}")


def make_fresh(path: Path, node: str) -> None:
    """Turn a restored snapshot into the file of a new member: it has nothing to publish and no former run."""
    db = connect(path)
    try:
        check(db, path)
        with write_transaction(db):
            runs = Runs.read(db)
            progress = read_progress(db)
            runs.advance(
                db, progress.run, progress.clock, {k: v for k, v in runs.vector().items() if k != progress.run}
            )
            runs.store(db)
            db.execute(f"DELETE FROM {PREFIX}log")
            fresh = replace(
                progress,
                run=0,
                node=node,
                folded_seq=0,
                published=progress.clock,
                published_seq=0,
                stretches=(),
                covers={},
                clock_offset=0,
            )
            write_progress(db, fresh)
        all_rows(db, "PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        db.close()


def discard(*paths: Path) -> None:
    """Remove scratch databases and what SQLite put beside them."""
    for path in paths:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
