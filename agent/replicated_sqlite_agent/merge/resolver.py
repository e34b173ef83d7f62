"""Two states of one row -> their join, and what is lost by it. Pure; the same on every replica.

The larger life wins whole; within one life each column takes its larger version. A lexicographic product of maxima is a
lattice, so the order of arrival, repetition and batching cannot matter.

Inserts with the same clock are one life, whatever their runs: an agent that is killed after it has published an insert
and before it has folded it gives that insert the same clock again under its next run. Were these two lives, one of them
would undo every later update of the other. A delete with the same clock as an insert wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from replicated_sqlite_agent.changes import (
    ZERO,
    RowState,
    Stretch,
    Value,
    Vector,
    Version,
    canonical,
    context_of,
)

WHOLE_ROW = "*"

Concurrent = Callable[[Version, Version], bool]
"""(loser, winner) -> whether the winner's writer did not know the loser."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A write that a merge discards although its writer could not know: the identity names the write."""

    column: str
    """The column, or ``*`` for a whole row."""
    version: Version
    value: Value | Mapping[str, Value]
    winner: Version
    winner_value: Value | Mapping[str, Value] | None
    rule: str


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Who knew what: needed to tell a conflict from a plain successor."""

    sender: int
    stretches: tuple[Stretch, ...]
    """The contexts of the sender's writes in this group, oldest first."""
    vector: Vector
    """What is applied here."""
    own_run: int
    contexts: Mapping[int, Vector]
    """run -> what it had seen at its last write applied here."""

    def _seen_by(self, winner: Version) -> Vector:
        if winner.run == self.sender:
            return context_of(self.stretches, winner.clock)
        return self.stretches[-1].seen if self.stretches else {}

    def blind(self, loser: Version, winner: Version) -> bool:
        """The incoming ``winner`` was written without knowing the local ``loser``.

        What the sender wrote itself it knows, whosever write it sends.
        """
        if loser.run in (winner.run, self.sender):
            return False
        return loser.clock > self._seen_by(winner).get(loser.run, 0)

    def unseen(self, loser: Version, winner: Version) -> bool:
        """The incoming ``loser`` is news here, and the local ``winner`` was written without knowing it."""
        if loser.run == winner.run or loser.clock <= self.vector.get(loser.run, 0):
            return False
        known = self.vector if winner.run == self.own_run else self.contexts.get(winner.run, {})
        return loser.clock > known.get(loser.run, 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """The state to store (None: keep what is here) and the writes that are lost."""

    state: RowState | None
    losses: tuple[Loss, ...] = ()


KEEP = Decision(None)


def resolve(
    incoming: RowState,
    local: RowState | None,
    knowledge: Knowledge,
    columns: Sequence[str],
    horizon: Vector,
) -> Decision:
    """What an incoming state does to the local one.

    ``local`` is None when the key is neither stored nor remembered as deleted. ``columns`` are the value columns of
    both sides together.
    """
    if local is None:
        forgotten = incoming.life == ZERO or incoming.life.clock <= horizon.get(incoming.life.run, 0)
        return KEEP if forgotten else Decision(_taken(incoming, columns))
    if _rank(incoming) > _rank(local):
        return Decision(_taken(incoming, columns), _losses_of(local, incoming, knowledge.blind))
    if _rank(incoming) < _rank(local):
        return Decision(None, _losses_of(incoming, local, knowledge.unseen))
    if not local.alive:
        return Decision(incoming) if incoming.life > local.life else KEEP
    return _join_columns(incoming, local, knowledge, columns)


def _rank(state: RowState) -> tuple[int, bool]:
    """The order of lives; living states of equal rank are joined column by column."""
    return state.life.clock, not state.alive


def _is_insert(version: Version, state: RowState) -> bool:
    """Whether a version in a state is the insert that began its life, under the run of one of its folds."""
    return version.clock == state.life.clock


def _taken(incoming: RowState, columns: Sequence[str]) -> RowState:
    """A life taken whole; a column that its writer does not know is the default, which came with the life."""
    if incoming.alive and incoming.update != incoming.life:
        unknown = {c: incoming.life for c in columns if c not in incoming.values}
        incoming = replace(incoming, columns=dict(incoming.columns) | unknown) if unknown else incoming
    return canonical(incoming, columns)


def _losses_of(loser: RowState, winner: RowState, concurrent: Concurrent) -> tuple[Loss, ...]:
    """The writes of a life that another life beats, as far as the winner's writer did not know them."""
    if not loser.alive or (winner.alive and loser.values == winner.values):
        return ()
    rule = "later insert" if winner.alive else "delete"
    shown = dict(winner.values) if winner.alive else None
    losses = []
    whole = loser.life if loser.columns else loser.update
    if whole != ZERO and concurrent(whole, winner.life):
        losses.append(Loss(WHOLE_ROW, whole, dict(loser.values), winner.life, shown, rule))
    for column, value in loser.values.items() if loser.columns else ():
        version = loser.version_of(column)
        if not _is_insert(version, loser) and concurrent(version, winner.life):
            losses.append(Loss(column, version, value, winner.life, shown.get(column) if shown else None, rule))
    return tuple(losses)


def _join_columns(incoming: RowState, local: RowState, knowledge: Knowledge, columns: Sequence[str]) -> Decision:
    if (incoming.life, incoming.update) == (local.life, local.update) and not incoming.columns and not local.columns:
        return KEEP
    if not incoming.columns and not local.columns and incoming.values.keys() == local.values.keys():
        return _join_rows(incoming, local, knowledge)
    versions: dict[str, Version] = {}
    values: dict[str, Value] = {}
    losses: list[Loss] = []
    life = max(incoming.life, local.life)
    changed = life != local.life
    for column in columns:
        known_to_both = column in incoming.values and column in local.values
        theirs, ours = _version_in(incoming, column), _version_in(local, column)
        loser, winner = (local, incoming) if theirs > ours else (incoming, local)
        changed = changed or winner is incoming
        versions[column] = max(theirs, ours)
        if column in winner.values:  # else it is the default, which came with the winner's life
            values[column] = winner.values[column]
        concurrent = knowledge.blind if winner is incoming else knowledge.unseen
        if known_to_both and theirs != ours and _lost(loser, column, winner, concurrent):
            losses.append(_column_loss(loser, column, winner))
    if not changed:
        return Decision(None, tuple(losses))
    update = max(incoming.update, local.update)
    merged = RowState(life, alive=True, update=update, columns=versions, values=values)
    return Decision(canonical(merged, versions), tuple(losses))


def _version_in(state: RowState, column: str) -> Version:
    """The version of a column; one that the writer does not know is as old as the life."""
    return state.version_of(column) if column in state.values else state.life


def _join_rows(incoming: RowState, local: RowState, knowledge: Knowledge) -> Decision:
    """Both rows were written whole: the later one is taken whole."""
    newer = incoming.update > local.update
    loser, winner = (local, incoming) if newer else (incoming, local)
    concurrent = knowledge.blind if newer else knowledge.unseen
    losses: tuple[Loss, ...] = ()
    # Beside an update, an insert is no news; two inserts of one clock with different values are two applications'.
    plain = _is_insert(loser.update, loser) and not _is_insert(winner.update, winner)
    if not plain and loser.values != winner.values and concurrent(loser.update, winner.update):
        rule = "later insert" if _is_insert(loser.update, loser) else "later write"
        losses = (Loss(WHOLE_ROW, loser.update, dict(loser.values), winner.update, dict(winner.values), rule),)
    life = max(incoming.life, local.life)
    if newer:
        return Decision(replace(incoming, life=life), losses)
    return Decision(replace(local, life=life) if life != local.life else None, losses)


def _lost(loser: RowState, column: str, winner: RowState, concurrent: Concurrent) -> bool:
    """Whether a column's losing value is a write of its own that the winner's writer did not know."""
    version = loser.version_of(column)
    if _is_insert(version, loser) or loser.values[column] == winner.values[column]:
        return False
    return concurrent(version, winner.version_of(column))


def _column_loss(loser: RowState, column: str, winner: RowState) -> Loss:
    return Loss(
        column,
        loser.version_of(column),
        loser.values[column],
        winner.version_of(column),
        winner.values[column],
        "later write",
    )
