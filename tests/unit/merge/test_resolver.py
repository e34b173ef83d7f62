"""The join of two states of a row: order, repetition and batching cannot matter."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from replicated_sqlite_agent.changes import RowState, Stretch, Vector, Version, canonical
from replicated_sqlite_agent.merge.resolver import Knowledge, resolve

COLUMNS = ("a", "b", "c")
versions = st.builds(Version, st.integers(1, 4), st.integers(1, 3))


def value_of(column: str, version: Version) -> str:
    """One version, one value: as real writers make it."""
    return f"{column} by {version.clock}.{version.run}"


@st.composite
def states(draw: st.DrawFn) -> RowState:
    """A state that a replica can have: no column older than the life, dead rows without columns."""
    life = draw(versions)
    if draw(st.integers(0, 3)) == 0:
        # One version is one write: whether it was a delete follows from it.
        life = Version(life.clock + 4, life.run)
        return RowState(life, alive=False, update=life)
    by_column = {c: max(life, draw(versions)) for c in COLUMNS}
    state = RowState(life, alive=True, update=life, columns=by_column)
    values = {c: value_of(c, v) for c, v in by_column.items()}
    return replace(canonical(state, COLUMNS), values=values)


def knowledge(vector: Vector | None = None, seen: Vector | None = None) -> Knowledge:
    """A replica of run 99 that hears of run 1."""
    stretches = (Stretch(1 << 62, seen or {}),)
    return Knowledge(1, stretches, vector or {}, 99, {})


def join(local: RowState | None, incoming: RowState) -> RowState:
    """What is stored after ``incoming`` met ``local``."""
    taken = resolve(incoming, local, knowledge(), COLUMNS, {}).state
    stored = taken if taken is not None else local
    assert stored is not None
    return stored


def in_order(*incoming: RowState) -> RowState:
    """All joined, one after the other."""
    local: RowState | None = None
    for state in incoming:
        local = join(local, state)
    assert local is not None
    return local


@given(st.lists(states(), min_size=3, max_size=3), st.data())
def test_any_order_and_repetition_gives_one_result(three: list[RowState], data: st.DataObject) -> None:
    expected = in_order(*three)
    for order in itertools.permutations(three):
        repeated = [*order, *data.draw(st.lists(st.sampled_from(three), max_size=2))]
        assert in_order(*repeated) == expected


@given(states(), states(), states())
def test_joining_in_groups_is_joining_one_by_one(a: RowState, b: RowState, c: RowState) -> None:
    assert join(join(a, b), c) == join(a, join(b, c))


@given(states())
def test_a_state_that_is_here_changes_nothing(state: RowState) -> None:
    here = in_order(state)
    assert resolve(state, here, knowledge(), COLUMNS, {}).state is None


@given(states(), states())
def test_the_result_is_canonical(a: RowState, b: RowState) -> None:
    joined = join(a, b)
    assert canonical(joined, COLUMNS) == joined
    assert all(v != joined.update for v in joined.columns.values())


@given(states(), states())
def test_nothing_is_newer_than_what_was_joined(a: RowState, b: RowState) -> None:
    joined = join(a, b)
    assert joined.newest() <= max(a.newest(), b.newest())
    assert joined.life == max(a.life, b.life)


@given(states(), st.sets(st.sampled_from(COLUMNS), min_size=1))
def test_a_column_unknown_to_the_writer_is_as_old_as_the_life(state: RowState, unknown: set[str]) -> None:
    known = {c: v for c, v in state.columns.items() if c not in unknown}
    values = {c: v for c, v in state.values.items() if c not in unknown}
    taken = join(None, replace(state, columns=known, values=values))
    if state.alive:
        assert all(taken.version_of(c) == state.life for c in unknown)


@given(states(), states(), st.dictionaries(st.integers(1, 3), st.integers(0, 8)))
def test_a_writer_that_knew_the_loser_makes_no_conflict(local: RowState, incoming: RowState, seen: Vector) -> None:
    everything = {run: 8 for run in (1, 2, 3)}
    assert resolve(incoming, local, knowledge(everything, everything), COLUMNS, {}).losses == ()
    for loss in resolve(incoming, local, knowledge({}, seen), COLUMNS, {}).losses:
        if loss.version in local.versions() and loss.version not in incoming.versions():
            assert loss.version.clock > seen.get(loss.version.run, 0)


def test_below_the_horizon_an_absent_row_stays_away() -> None:
    state = RowState(Version(5, 2), alive=True, update=Version(5, 2), values={c: 1 for c in COLUMNS})
    assert resolve(state, None, knowledge(), COLUMNS, {2: 5}).state is None
    assert resolve(state, None, knowledge(), COLUMNS, {2: 4}).state == state


def test_an_insert_that_is_folded_again_by_the_next_run_undoes_no_update() -> None:
    """Run 1 publishes an insert and is killed before it folds it; run 9 folds it again, with the same clock. Run 5
    has updated the row of run 1 in between, or run 9 updates the row of its own.
    """
    published = RowState(Version(5, 1), alive=True, update=Version(5, 1), values={"a": "old"})
    for other in (0, 9):
        again = replace(published, life=Version(5, other), update=Version(5, other))
        for run, there in ((5, published), (other, again)):
            updated = replace(there, update=Version(6, run), values={"a": "new"})
            for order in itertools.permutations((published, again, updated)):
                joined = in_order(*order)
                assert (joined.update, joined.values) == (Version(6, run), {"a": "new"})
        met = resolve(replace(published, update=Version(6, 5), values={"a": "new"}), again, knowledge(), ("a",), {})
        assert met.losses == ()


def test_two_inserts_of_one_clock_with_different_values_are_a_conflict() -> None:
    here = RowState(Version(5, 2), alive=True, update=Version(5, 2), values={"a": "here"})
    there = RowState(Version(5, 3), alive=True, update=Version(5, 3), values={"a": "there"})
    decision = resolve(there, here, knowledge(), ("a",), {})
    assert decision.state == there
    assert [(loss.rule, loss.version) for loss in decision.losses] == [("later insert", here.life)]
