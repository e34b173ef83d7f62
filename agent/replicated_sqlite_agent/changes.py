"""The words of the protocol as plain types. Pure: no I/O, no clock, no SQL.

A *version* says which write a value comes from. A row is a *life* (a version, alive or dead) and, for each column, the
version of the write that set it. A *vector* says how far each run has been seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

CLOCK_SHIFT = 20
"""A clock is milliseconds since 1970 shifted by this, plus a counter: about a million writes per millisecond."""


class Version(NamedTuple):
    """Which write: (hybrid logical clock, number of the run that made it). Ordered by clock, then by run."""

    clock: int
    run: int


ZERO = Version(0, 0)
"""The version of everything that was there before replication began."""

Vector = dict[int, int]
"""run -> the largest clock seen of it. At once progress, causal context and token."""


class RawText:
    """TEXT whose bytes are not valid UTF-8. SQLite stores such values, Python strings cannot.

    No dataclass: msgspec would encode that as a map instead of asking our hook.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawText) and self.data == other.data

    def __hash__(self) -> int:
        return hash((RawText, self.data))

    def __repr__(self) -> str:
        return f"RawText({self.data!r})"


Value = None | int | float | str | bytes | RawText
Key = tuple[Value, ...]


class Kind(IntEnum):
    """What a log row says happened to its key. The numbers are in the file: never reuse one."""

    INSERT = 1
    UPDATE = 2
    DELETE = 3
    TOUCHED = 4
    """Another row has claimed a UNIQUE value of this one: a delete if the row is gone, else nothing."""
    SAY_AGAIN = 5
    """Written by the agent: publish the present state with its present versions."""


class Mention(NamedTuple):
    """One log row of one key, with the clock that the fold gives it."""

    kind: Kind
    mask: int
    clock: int


@dataclass(frozen=True, slots=True)
class RowState:
    """A row as the merge sees it.

    ``update`` is the version of the last write that set the whole row within its life (the life itself if there was
    none); ``columns`` holds only the columns whose version differs from it. ``values`` is empty for a dead row.
    """

    life: Version
    alive: bool
    update: Version
    columns: Mapping[str, Version] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)

    def version_of(self, column: str) -> Version:
        """The version of one column's value."""
        return self.columns.get(column, self.update)

    def newest(self) -> Version:
        """The largest version in the row."""
        return max(self.life, self.update, *self.columns.values())

    def versions(self) -> tuple[Version, ...]:
        """Every version in the row."""
        return (self.life, self.update, *self.columns.values())


def dead(version: Version) -> RowState:
    """The state of a deleted row: its life is the version of the delete."""
    return RowState(life=version, alive=False, update=version)


def canonical(state: RowState, columns: Iterable[str]) -> RowState:
    """The same state in its one normal form, so that equal states are stored and compared equally everywhere.

    ``update`` becomes the largest version among ``columns`` (all value columns known of the row); only columns that
    differ from it stay listed.
    """
    if not state.columns or not state.alive:
        return state
    versions = {column: state.version_of(column) for column in columns}
    update = max(versions.values(), default=state.update)
    return replace(state, update=update, columns={c: v for c, v in versions.items() if v != update})


class Stretch(NamedTuple):
    """What a run had seen when it made its writes up to ``clock``: the causal context of those writes."""

    clock: int
    seen: Vector


def context_of(stretches: tuple[Stretch, ...], clock: int) -> Vector:
    """The context of the write with this clock: the first stretch that reaches it, else the last one."""
    for stretch in stretches:
        if clock <= stretch.clock:
            return stretch.seen
    return stretches[-1].seen if stretches else {}


def dominates(vector: Mapping[int, int], other: Mapping[int, int]) -> bool:
    """Whether everything that ``other`` has seen, ``vector`` has seen too."""
    return all(vector.get(run, 0) >= clock for run, clock in other.items())


def least(vectors: list[Vector]) -> Vector:
    """What every one of these vectors has seen: for each run the smallest clock, 0 where one lacks it."""
    runs = set().union(*vectors)
    return {run: min(v.get(run, 0) for v in vectors) for run in runs}


def advance(clock: int, wall_ms: int) -> int:
    """The next clock after ``clock`` for a write at this wall time (milliseconds, corrected by the measured offset)."""
    return max(clock + 1, wall_ms << CLOCK_SHIFT)


def wall_ms(clock: int) -> int:
    """The wall time in milliseconds that a clock contains."""
    return clock >> CLOCK_SHIFT
