"""Tables without a primary key: a row is named by its insert, its rowid is only where it lies in this file.

The name is (run, clock) of the insert, (0, rowid) for rows that were there when replication began. The protocol's
(run, rowid) would name two rows alike once VACUUM has renumbered the rowids and the application inserts again. Such a
table is folded before it is published, so a name once said never changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import apsw

from replicated_sqlite_agent.changes import Key, Kind, Mention, RowState, Version, dead
from replicated_sqlite_agent.database.identifiers import quote
from replicated_sqlite_agent.replica.rows import Rows


def name_of(rows: Rows, local: Key) -> Key | None:
    """The (run, number) of the living row with this rowid."""
    found = rows.db.execute(f"SELECT run, number FROM {rows.side} WHERE k1 = ?", local).fetchone()
    return None if found is None else tuple(found)


def fold_keyless(rows: Rows, by_rowid: dict[Key, list[Mention]], run: int) -> None:
    """Store the versions of all rows mentioned by rowid."""
    for local, mentions in by_rowid.items():
        name, rowid = name_of(rows, local), cast(int, local[0])
        stored = rows.entry(name) if name is not None else None
        state = stored.state if stored is not None else None
        known = state is not None
        for kind, _, clock in mentions:
            version = Version(clock, run)
            if kind == Kind.DELETE or (kind == Kind.TOUCHED and not rows.present(local)):
                if known:
                    _end(rows, name, version)
                state, name, known = None, None, False
            elif kind in (Kind.INSERT, Kind.UPDATE):
                if state is None:
                    name = (run, clock)
                    state = RowState(version, alive=True, update=version)
                else:
                    state = replace(state, update=version, columns={})
        if name is not None and state is not None and state.alive and (stored is None or state != stored.state):
            rows.put_entry(name, state, rowid)


def _end(rows: Rows, name: Key | None, version: Version) -> None:
    if name is not None:
        rows.put_entry(name, dead(version), None)


def renew_rowids(db: apsw.Connection, rows: Rows, log: str, top: int) -> None:
    """A table copied and renamed has other rowids but the same order of rows: put the names back by that order.

    Called when the schema cookie moved, nothing of the table waiting for the fold: until then names lie on rowids of
    rows that are gone. Rows beyond the known ones are new: logged as inserts. (VACUUM keeps rowids; see `install`.)
    """
    base = f"SELECT rowid FROM {quote(rows.table.name)} ORDER BY rowid"
    lying = [row[0] for row in db.execute(base)]
    known = list(db.execute(f"SELECT k1, run, number FROM {rows.side} WHERE k1 IS NOT NULL ORDER BY k1"))
    if lying == [row[0] for row in known] or not known:
        return
    if len(lying) >= len(known):
        db.execute(f"UPDATE {rows.side} SET k1 = NULL WHERE k1 IS NOT NULL")
        moved = [(now, run, number) for now, (_, run, number) in zip(lying, known, strict=False)]
        db.executemany(f"UPDATE {rows.side} SET k1 = ? WHERE run = ? AND number = ?", moved)
    logged = f"SELECT k1 FROM {log} WHERE top BETWEEN {top} AND {top + 7}"
    pending = {row[0] for row in db.execute(logged)}
    now = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"
    fresh = [(rowid,) for rowid in lying[len(known) :] if rowid not in pending]
    db.executemany(f"INSERT INTO {log}(top, ts, mask, k1) VALUES ({top + Kind.INSERT}, {now}, -1, ?)", fresh)
