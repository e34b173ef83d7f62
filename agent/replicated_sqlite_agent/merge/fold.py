"""What the log says about a key -> the new state of its versions. Pure.

A function of stored facts only, never of the present time: the publisher computes the same versions in a read
transaction that the writer stores later, and computes them again after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from replicated_sqlite_agent.changes import ZERO, Kind, Mention, RowState, Version, canonical, dead

_NEWS = (Kind.INSERT, Kind.UPDATE, Kind.DELETE)


def fold_key(
    mentions: Sequence[Mention],
    entry: RowState | None,
    *,
    present: bool,
    hidden: bool,
    run: int,
    columns: Sequence[str],
    by_column: bool,
) -> RowState | None:
    """The versions of one key after these mentions, in order of the log; None if they change nothing.

    ``entry`` is what is stored (None: versions (0, 0), or never heard of); ``present`` whether the table has the row,
    ``hidden`` whether it waits hidden behind another row. ``columns`` are all value columns, the bits of a mask in the
    same order. Values are not looked at: they are read when they are sent.
    """
    news = [m for m in mentions if m.kind in _NEWS]
    inserted = any(m.kind == Kind.INSERT for m in news)
    # Nothing stored: a founding row, unless the first that is heard of it is an insert.
    alive = entry.alive if entry is not None else not (news and news[0].kind == Kind.INSERT)
    if not news and (present or hidden):
        return None
    if not present:
        return dead(Version(mentions[-1].clock, run))
    gone = not (alive and not (hidden and inserted))
    maybe_gone = False
    life: int | None = None
    written: dict[str, int] = {}
    whole = 0
    for kind, mask, clock in mentions:
        if kind == Kind.DELETE:
            gone = True
        elif kind == Kind.TOUCHED:
            maybe_gone = True  # it was displaced if an insert follows; UPSERT and OR IGNORE only touch
        elif kind == Kind.INSERT and (gone or maybe_gone):
            life, gone, maybe_gone, written, whole = clock, False, False, {}, 0
        elif kind == Kind.INSERT or (kind == Kind.UPDATE and (mask == -1 or not by_column)):
            written, whole = {}, clock
        elif kind == Kind.UPDATE:
            written.update({c: clock for i, c in enumerate(columns) if mask >> i & 1})
    if gone:
        # The row was deleted and is there again: the log says how in rows that come after these.
        return dead(Version(mentions[-1].clock, run))
    if life is not None:
        state = RowState(Version(life, run), alive=True, update=Version(life, run))
    else:
        state = entry or RowState(ZERO, alive=True, update=ZERO)
    if whole:
        state = replace(state, update=Version(whole, run), columns={})
    if written:
        merged = dict(state.columns) | {c: Version(clock, run) for c, clock in written.items()}
        state = canonical(replace(state, columns=merged), columns)
    return state
