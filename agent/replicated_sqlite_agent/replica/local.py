"""The fold of one table: local writes get their versions in the side table."""

from __future__ import annotations

from replicated_sqlite_agent.changes import Key, Kind, Mention
from replicated_sqlite_agent.database.own_tables import key_columns
from replicated_sqlite_agent.merge.fold import fold_key
from replicated_sqlite_agent.replica.rows import Rows, has_raw_text


def fold_table(rows: Rows, by_key: dict[Key, list[Mention]], run: int) -> None:
    """Store the versions of all keys mentioned. A key mentioned once needs no look at what is stored."""
    by_key = one_form(rows, by_key)
    hidden = rows.table.unique and rows.any_hidden()
    once: dict[int, list[tuple[object, ...]]] = {Kind.INSERT: [], Kind.UPDATE: [], Kind.DELETE: []}
    for key, mentions in by_key.items():
        kind, _, clock = mentions[0]
        if (
            len(mentions) > 1
            or kind not in once
            or hidden
            or (rows.captured.by_column and kind == Kind.UPDATE)
            or has_raw_text(key)
        ):
            _fold_exactly(rows, key, mentions, run)
        else:
            once[kind].append((*key, clock))
    run_id = rows.runs.id_of(rows.db, run)
    for counted, params in once.items():
        if params:
            rows.db.executemany(_upsert(rows, Kind(counted), run_id), params)


def one_form(rows: Rows, by_key: dict[Key, list[Mention]]) -> dict[Key, list[Mention]]:
    """Keys that SQLite finds equal become one, named by its latest bytes."""
    if rows.table.key_is_exact:
        return by_key
    latest: dict[Key, Key] = {}
    merged: dict[Key, list[Mention]] = {}
    for key, mentions in by_key.items():
        same = rows.table.same_key(key)
        latest[same] = key
        merged.setdefault(same, []).extend(mentions)
    return {latest[same]: sorted(mentions, key=lambda m: m.clock) for same, mentions in merged.items()}


def _fold_exactly(rows: Rows, key: Key, mentions: list[Mention], run: int) -> None:
    stored = rows.entry(key)
    before = stored.state if stored is not None else None
    hidden = bool(rows.table.unique) and rows.hidden(key) is not None
    after = fold_key(
        mentions,
        before,
        present=rows.present(key),
        hidden=hidden,
        run=run,
        columns=rows.table.columns,
        by_column=rows.captured.by_column,
    )
    if after is None:
        return
    if hidden and (not after.alive or before is None or after.life != before.life):
        rows.unhide(key)
    rows.put_entry(key, after)


def _upsert(rows: Rows, kind: Kind, run_id: int) -> str:
    """The fold of a key mentioned once, as one statement: (key …, clock) are its parameters."""
    width = len(rows.table.key)
    marks = ", ".join(f"?{i + 1}" for i in range(width))
    clock = f"?{width + 1}"
    head = f"INSERT INTO {rows.side}({key_columns(width)}, l, lr, dead, u, ur, x) VALUES ({marks}, "
    conflict = f"ON CONFLICT({key_columns(width)}) DO UPDATE SET"
    if kind == Kind.INSERT:
        return (
            f"{head}{clock}, {run_id}, 0, NULL, NULL, NULL) {conflict} "
            "u = iif(dead, NULL, excluded.l), ur = iif(dead, NULL, excluded.lr), x = NULL, "
            "l = iif(dead, excluded.l, l), lr = iif(dead, excluded.lr, lr), dead = 0"
        )
    if kind == Kind.UPDATE:
        return (
            f"{head}0, 0, 0, {clock}, {run_id}, NULL) {conflict} "
            "u = excluded.u, ur = excluded.ur, x = NULL WHERE NOT dead"
        )
    return (
        f"{head}{clock}, {run_id}, 1, NULL, NULL, NULL) {conflict} "
        "l = excluded.l, lr = excluded.lr, dead = 1, u = NULL, ur = NULL, x = NULL"
    )
